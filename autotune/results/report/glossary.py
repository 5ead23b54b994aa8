"""The words of a report, for somebody who does not know them."""

from __future__ import annotations

#: What the answer of a study rests on, in words.
EVIDENCE = {
    "test": "Evidence: {metric} on the test split, images that no search or training has used",
    "confirmed": "Evidence: {metric} on the validation split, over several seeds",
    "search": "Evidence: {metric} in the search alone, one training of each plan",
    "none": "",
}
GLOSSARY = (
    ("trial", "One try: a plan that was trained and measured. Trials have numbers, from 0."),
    (
        "plan",
        "Which layers of the network train, what they become, and how they are trained, for "
        "example the learning rate (lr).",
    ),
    (
        "baseline",
        "Trial 0, with which all others are compared: the pretrained network as it is, with a new "
        "last layer, the head, which alone is trained.",
    ),
    (
        "frozen, trainable, reshaped",
        "A frozen layer keeps its pretrained weights; a trainable one learns from the images; a "
        "reshaped one also gets another form, for example fewer channels.",
    ),
    (
        "layer 1, layer 2, ...",
        "The layers of the backbone, counted from its end: layer 1 is the last one, just before "
        "the head. Names like layer4 or blocks.6 are those of the network itself.",
    ),
    (
        "kernel, width",
        "The size of the window that a layer looks through, and its number of channels relative "
        "to the pretrained one.",
    ),
    ("linear head", "A last layer without hidden layers. Head 256 has a hidden one of 256 units."),
    (
        "solved",
        "The weights of the head are computed directly from the features of the frozen network, "
        "instead of being trained over epochs. Solved first: so it starts, and then all trains.",
    ),
    (
        "lr, backbone x0.3, layer decay",
        "The learning rate: how far a step of the training goes. With backbone x0.3 the layers "
        "before the head take steps 0.3 times as long; with layer decay 0.7 each layer takes 0.7 "
        "times those of the layer after it.",
    ),
    ("epoch", "A training pass over all training images."),
    ("seed", "The number from which all chance follows: order of images, first weights."),
    (
        "training, validation and test split",
        "Three groups of the images: networks learn from the first, plans are chosen by the "
        "second, and the third is kept until the end, so that it tells how good the result is.",
    ),
    ("points", "Percentage points: from 90 % to 92 % are 2 points."),
    (
        "95 % interval",
        "Where the true value lies, in 95 of 100 such studies. A gain whose interval includes 0 "
        "is not shown to be one.",
    ),
    (
        "corrected for the choice",
        "The best of many plans is in part the luckiest one. The corrected value is what it is "
        "worth on other images of the same kind; the chance to be the best says how sure it is "
        "that no other plan is better there.",
    ),
    (
        "noise",
        "How far two values may differ by chance alone. A gain below twice that may be luck.",
    ),
    (
        "loss",
        "How wrong the network is, counting how sure it is; less is better. Its unit is the nat: "
        "0.7 is the loss of a guess between two classes.",
    ),
    (
        "overfitting",
        "Learning the training images by heart: better on them, and worse on others.",
    ),
    ("pruned", "Ended early, because others were better after as many passes over the images."),
    (
        "balanced accuracy, macro F1",
        "Accuracies in which every class counts the same, however many images it has: the mean "
        "recall, and a mean that also counts images wrongly taken for a class.",
    ),
    ("recall", "The share of the images of a class that the network recognizes."),
    ("confirm", "Train the best plans and the baseline anew, several times, to rule out luck."),
    ("refit", "Train the chosen plan on all images but the test split, and measure it on that."),
)
