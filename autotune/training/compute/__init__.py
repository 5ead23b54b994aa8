"""How a step is computed: precision, CUDA graphs, micro-batches."""
