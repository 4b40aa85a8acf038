"""The bounds of the dependencies, and what must not depend on a version within them."""

import os
import sys
from collections.abc import Sequence
from importlib.metadata import requires, version

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ON_LOWER_BOUNDS = "NNUNET_VIT_ON_LOWER_BOUNDS"  # set by `make test-oldest`


def dependencies() -> Sequence[Requirement]:
    return [r for r in map(Requirement, requires("nnunet-vit") or []) if r.marker is None]


def lower_bound(requirement: Requirement) -> Version | None:
    return next((Version(s.version) for s in requirement.specifier if s.operator == ">="), None)


@pytest.mark.parametrize("requirement", dependencies(), ids=lambda r: r.name)
def test_every_dependency_has_a_lower_bound_that_is_met(requirement: Requirement):
    # without a bound, the lowest version that `make test-oldest` could install is the first one ever published
    assert lower_bound(requirement) is not None
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)


@pytest.mark.skipif(ON_LOWER_BOUNDS not in os.environ, reason="only in the environment of `make test-oldest`")
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from 3.12 on, other packages ask for later NumPy and SciPy")
@pytest.mark.parametrize("requirement", dependencies(), ids=lambda r: r.name)
def test_the_lower_bound_is_what_is_installed(requirement: Requirement):
    # where another package asks for more, the bound promises a version that nobody can install
    assert Version(Version(version(requirement.name)).public) == lower_bound(requirement)
