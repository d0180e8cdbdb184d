"""The CPUs that a model can be quantized for: levels, requirements, and what is tried first.

1. A target whose integer arithmetic is faster than float is tried with static int8 first; on any other, weights alone
   become int8, because static int8 saves no time there.
2. A target's integer form is exact on every CPU that fulfils its requirements.
3. Speed is measured on this machine only if this machine fulfils the requirements.
"""

import os
from dataclasses import dataclass
from typing import Final

from bundle.cpu_features import read_cpu_features

X86: Final = ("x86_64",)
ARM: Final = ("aarch64", "armv7l", "armv8l")  # `uname -m`


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of CPU.

    Attributes:
        name: value of `--target` and of `target` in a release file.
        arch: architectures of which a device must have one; empty allows all.
        cpu_features: features that a device must have.
        signed_weights: signed weights: of 7 bits, or of full range with `signed_activations`.
        signed_activations: signed activations, for ARM.
        is_integer_faster: integer kernels are faster than float ones.
    """

    name: str
    arch: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    signed_weights: bool = False
    signed_activations: bool = False
    is_integer_faster: bool = False

    @property
    def is_this_machine(self) -> bool:
        """True if this machine fulfils the requirements, so that its speed is that of the target."""
        fits_arch = not self.arch or os.uname().machine in self.arch
        return fits_arch and (not self.cpu_features or read_cpu_features().issuperset(self.cpu_features))


ANY: Final = Target("any")
TARGETS: Final = {
    target.name: target
    for target in (
        ANY,
        Target("x86-avx2", X86, ("avx2",), signed_weights=True),
        Target("x86-vnni", X86, ("vnni",), is_integer_faster=True),
        Target("arm", ARM, signed_activations=True, is_integer_faster=True),
        Target("arm-dotprod", ARM, ("asimddp",), signed_activations=True, is_integer_faster=True),
        Target("arm-i8mm", ARM, ("i8mm",), signed_activations=True, is_integer_faster=True),
    )
}
AUTO_TARGETS: Final = ("x86-vnni", "arm-dotprod")  # integer variants of the scheme auto for the target "any"
