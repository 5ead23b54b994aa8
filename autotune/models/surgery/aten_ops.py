"""Operations of torch by what they do to channels.

Operations with the tag ``pointwise`` are elementwise. An operation in no list here is taken to
mix channels.
"""

from __future__ import annotations

import torch

aten = torch.ops.aten

#: Move values without changing them.
MOVING = {
    aten.permute, aten.transpose, aten.t, aten.clone, aten.detach, aten.alias, aten.unsqueeze,
    aten.squeeze, aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.expand,
    aten.cat, aten.stack, aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.unbind,
    aten.roll, aten.flip, aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d,
    aten.pixel_shuffle, aten.pixel_unshuffle, aten.channel_shuffle, aten.native_channel_shuffle,
    aten.im2col, aten.unfold, aten.repeat, aten.repeat_interleave, aten.diagonal, aten._to_copy,
}  # fmt: skip
#: Of these, the ones that keep every value in its place, and those that reshape.
COPYING = {aten.clone, aten.detach, aten.alias, aten._to_copy}
RESHAPING = {aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias}
#: Elementwise, though not tagged so.
ELEMENTWISE = {aten.hardswish, aten.hardswish_, aten.hardsigmoid_, aten._prelu_kernel}
#: Combine the pixels of one channel.
POOLING = {
    aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_avg_pool2d, aten.max_pool2d,
    aten.max_pool2d_with_indices, aten.adaptive_max_pool2d, aten.upsample_nearest2d,
    aten.upsample_bilinear2d, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa,
    aten._upsample_bicubic2d_aa, aten.grid_sampler_2d,
}  # fmt: skip
#: Reduce some dimensions to one value.
SUMS = {aten.sum, aten.linalg_vector_norm}
STATISTICS = {aten.mean, aten.var, aten.std, aten.var_mean, aten.amax, aten.amin, *SUMS}
#: Compute each value from all values along a dimension.
ALONG = {aten._softmax, aten._safe_softmax, aten._log_softmax, aten.cumsum}
#: Scale by statistics and by an entry a channel; those of batch norms are statistics of channels.
BATCH_NORMS = {
    aten.native_batch_norm, aten.cudnn_batch_norm, aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training, aten._batch_norm_no_update,
}  # fmt: skip
LAYER_NORMS = {aten.native_layer_norm, aten._fused_rms_norm, aten.rms_norm}
NORMS = BATCH_NORMS | LAYER_NORMS | {aten.native_group_norm}
