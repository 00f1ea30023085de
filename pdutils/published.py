"""What the paper and the blog report, to be set beside what is measured here.

Sources: Prakash, Moran, Garber, DiLillo, Storer 2018, arXiv 1801.08926, and the authors' blog post,
https://iamaaditya.github.io/2018/02/demo-for-pixel-deflection/. All of it is against attackers who
do not know of the defence. Neither states how many images or which; no interval can be given.
"""

from typing import NamedTuple

#: The blog's probabilities of badger (true) and skunk (attack), as its notebook states them:
#: ResNet-50, one image, one draw. Its final table gives 0.75 for PD, which is PD 600.
BLOG: dict[str, tuple[float | None, float | None]] = {
    "clean": (1.00, 0.00),
    "clean, PD 200": (1.00, None),
    "clean, PD 600": (1.00, None),
    "adversary": (0.15, 0.59),
    "PD 200": (0.52, 0.25),
    "PD 600": (0.75, 0.16),
    "PD 200 + WD": (0.92, 0.07),
    "PD 1500 + R-CAM": (0.82, 0.12),
    "PD 1500 + R-CAM + WD": (0.97, 0.02),
}


class Claim(NamedTuple):
    """What the blog or the paper claims of a comparison, and by whom, in words.

    The direction says what the first of the two would be: "more", "fewer", "as many" or "no more".
    """

    text: str
    direction: str


#: What the blog says of its one image, the paper's destruction rates of IGSM, and what others say.
CLAIMS: dict[str, Claim] = {
    "pd": Claim("The blog's badger gains by PD, 0.15 to 0.52", "more"),
    "wd": Claim("The blog's badger gains by WD, 0.52 to 0.92", "more"),
    "map": Claim("The paper has more with the map, 0.91 against 0.88", "more"),
    "place": Claim("The blog says that attacks are not localised", "as many"),
    "robust": Claim("The paper proposes R-CAM as the map that an attack moves less", "more"),
    "spared": Claim("The paper lets the map spare the object, so that it is hurt less", "more"),
    "window": Claim("The blog says that window 20 looks better", "more"),
    "soft": Claim("The blog says that soft does better", "more"),
    "ycbcr": Claim("The blog says that YCbCr does better, by 1.6 points", "more"),
    "aware": Claim("Athalye and Carlini have fewer right, with PD + WD", "fewer"),
    "bias": Claim("The blog says that a bias does not help", "no more"),
}


def blog_answer(step: str) -> Claim | None:
    """Say what the blog's network sees at one of the blog's steps, such as "PD 200".

    "more": the true class, "fewer": another one. None where the blog does not state it.
    """
    true, attacked = BLOG.get(step, (None, None))
    if true is None:
        return None
    if attacked is not None and attacked > true:
        text = f"The blog's network sees a skunk, {attacked:.2f}, and not the badger, {true:.2f}"
        return Claim(text, "fewer")
    return Claim(f"The blog's network sees its badger, {true:.2f}", "more")


def blog_move(before: str, after: str) -> Claim | None:
    """Say how the blog's badger fares from one of its steps to another; None without both."""
    first, second = BLOG.get(before, (None,))[0], BLOG.get(after, (None,))[0]
    if first is None or second is None:
        return None
    if first == second:
        return Claim(f"The blog's badger stays at {first:.2f}", "as many")
    verb, direction = ("rises", "more") if second > first else ("falls", "fewer")
    return Claim(f"The blog's badger {verb} from {first:.2f} to {second:.2f}", direction)


#: The authors' three published adversaries: the range of their relative L2, and of the greatest
#: change of a channel, in grey levels (but for two values of one of them, which wrapped round).
AUTHORS_L2, AUTHORS_LINF = (0.0045, 0.014), (2, 4)


class Recovery(NamedTuple):
    """A row of the paper's table of one network: the relative L2 of an attack, and accuracies.

    They are top-1: of the undefended network under it, and with the defence, one run and the
    majority of ten.
    """

    l2: float
    attacked: float
    single: float
    majority: float


#: Top-1 accuracy on images that the network gets right when clean; window 10, sigma 0.04, 100
#: deflections.
ACCURACY: dict[str, dict[str, Recovery]] = {
    "resnet50": {
        "clean": Recovery(0.00, 1.000, 0.983, 0.989),
        "FGSM": Recovery(0.05, 0.200, 0.799, 0.815),
        "IGSM": Recovery(0.03, 0.141, 0.837, 0.837),
        "DeepFool": Recovery(0.02, 0.263, 0.863, 0.903),
        "JSMA": Recovery(0.02, 0.255, 0.915, 0.970),
        "L-BFGS": Recovery(0.02, 0.121, 0.880, 0.916),
        "C&W": Recovery(0.04, 0.048, 0.927, 0.980),
    },
    "vgg19": {
        "clean": Recovery(0.00, 1.000, 0.998, 0.998),
        "FGSM": Recovery(0.05, 0.122, 0.793, 0.813),
        "IGSM": Recovery(0.04, 0.0979, 0.792, 0.816),
        "DeepFool": Recovery(0.01, 0.237, 0.839, 0.916),
        "JSMA": Recovery(0.01, 0.291, 0.958, 0.985),
        "L-BFGS": Recovery(0.03, 0.138, 0.830, 0.939),
        "C&W": Recovery(0.04, 0.000, 0.931, 0.976),
    },
    "inception_v3": {
        "clean": Recovery(0.00, 1.000, 0.981, 0.985),
        "FGSM": Recovery(0.05, 0.221, 0.858, 0.871),
        "IGSM": Recovery(0.04, 0.155, 0.897, 0.891),
        "DeepFool": Recovery(0.02, 0.272, 0.826, 0.853),
        "JSMA": Recovery(0.02, 0.242, 0.937, 0.986),
        "L-BFGS": Recovery(0.02, 0.125, 0.871, 0.910),
        "C&W": Recovery(0.04, 0.071, 0.939, 0.985),
    },
}

#: The same for larger perturbations, ResNet-50.
LARGER: dict[str, Recovery] = {
    "FGSM": Recovery(0.12, 0.111, 0.615, 0.704),
    "IGSM": Recovery(0.09, 0.111, 0.625, 0.725),
    "DeepFool": Recovery(0.08, 0.080, 0.824, 0.889),
    "JSMA": Recovery(0.05, 0.221, 0.889, 0.921),
    "L-BFGS": Recovery(0.04, 0.121, 0.770, 0.890),
}

#: Destruction rates: the share of adversaries that a defence turns back, attacks of relative L2
#: 0.02 to 0.06. None where the paper has no figure.
DESTRUCTION: dict[str, dict[str, float | None]] = {
    name: dict(zip(("FGSM", "IGSM", "DeepFool", "C&W"), rates, strict=True))
    for name, rates in {
        "bit depth 2": (0.132, 0.511, 0.286, 0.170),
        "bit depth 5": (0.057, 0.022, 0.310, 0.957),
        "median 2 x 2": (0.358, 0.422, 0.714, 0.894),
        "median 3 x 3": (0.264, 0.444, 0.500, 0.723),
        "non-local means 11-3-2": (0.113, 0.156, 0.357, 0.936),
        "non-local means 13-3-4": (0.226, 0.444, 0.548, 0.936),
        "random padding": (0.050, None, 0.972, 0.698),
        "random resizing": (0.360, None, 0.974, 0.971),
        "random resizing and padding": (0.478, None, 0.983, 0.969),
        "PD": (0.735, 0.880, 0.914, 0.931),
        "PD + R-CAM": (0.746, 0.912, 0.911, 0.952),
        "PD + R-CAM + DCT": (0.737, 0.906, 0.874, 0.930),
        "PD + R-CAM + WD": (0.769, 0.927, 0.948, 0.981),
    }.items()
}

#: The paper's one comparison of denoisers.
WAVELETS_OR_DCT = Claim(
    "The paper turns more back with wavelets, 0.93 against 0.91 (IGSM, many images, with the map)",
    "more",
)

#: Athalye and Carlini 2018, arXiv 1804.03286: what deflection and wavelet denoising, without a map,
#: leave on ImageNet against an attacker who knows of them, at L-infinity 4 of 255.
BROKEN: dict[str, float] = {"accuracy": 0.00, "targeted success": 0.97}
