"""Which plugins a list names: a plugin is what it is called *and* whose it is.

    cohortium:gaussian              the plugin `gaussian` of the distribution `cohortium`
    gaussian                        the same: a bare name is one of ours
    cohortium-example:toy==1.2      of one version, letter for letter
    cohortium-example:*             all that a distribution has
    cohortium                       all of ours

Any distribution may call a plugin `gaussian`.  So a list of what may run that went by that name
alone would let in whoever takes it.  Names of distributions are compared as PEP 503 has it: case,
and runs of `-`, `_` and `.`, make no difference.
"""

from __future__ import annotations

import re

from attrs import frozen

from cohortium.errors import StudyError
from cohortium.third_party import truncated

OWN_DISTRIBUTION = "cohortium"
"""The distribution that this module comes with."""

_FORM = re.compile(
    r"(?:(?P<distribution>[A-Za-z0-9][\w.-]*):)?(?P<plugin>\*|[\w.-]+)(?:==(?P<version>[\w.+!-]+))?",
    re.ASCII,
)


def normalize_name(name: str) -> str:
    """The one form of a distribution's name (PEP 503).

    >>> normalize_name("Acme_Split.tools")
    'acme-split-tools'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


@frozen
class PluginPattern:
    """One entry of a list of plugins.

    Attributes:
        distribution: Its name in the normal form; empty where the entry is a bare name.
        plugin: The plugin's name; "*" is every one.
        version: The distribution's version; empty is any.
    """

    distribution: str
    plugin: str
    version: str = ""

    @classmethod
    def parse(cls, text: str, *, where: str) -> PluginPattern:
        """The entry that `text` writes.

        Raises:
            StudyError: It is none.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None or (found["plugin"] == "*" and not found["distribution"]):
            raise StudyError(
                f"{where}: {truncated(text, 80)!r} names no plugin; write distribution:plugin or "
                "distribution:plugin==version, as in cohortium:gaussian, or distribution:* for all "
                "of one."
            )
        return cls(
            normalize_name(found["distribution"] or ""), found["plugin"], found["version"] or ""
        )

    def allows(self, distribution: str, plugin: str, version: str) -> bool:
        """Whether it names this plugin: a bare name is one of ours, or ours as a whole."""
        if not self.distribution and normalize_name(self.plugin) == OWN_DISTRIBUTION:
            return self._is(distribution, OWN_DISTRIBUTION, version)
        return self.plugin in ("*", plugin) and self._is(
            distribution, self.distribution or OWN_DISTRIBUTION, version
        )

    def blocks(self, distribution: str, plugin: str, version: str) -> bool:
        """Whether it keeps this plugin out: a bare name is a plugin or distribution of anyone's."""
        if self.distribution:
            return self.plugin in ("*", plugin) and self._is(
                distribution, self.distribution, version
            )
        named = {normalize_name(plugin), normalize_name(distribution)}
        return normalize_name(self.plugin) in named and self.version in ("", version)

    def _is(self, distribution: str, wanted: str, version: str) -> bool:
        return normalize_name(distribution) == wanted and self.version in ("", version)


def parse_patterns(texts: tuple[str, ...] | list[str], *, where: str) -> tuple[PluginPattern, ...]:
    """The entries of a list.

    Raises:
        StudyError: One is none.
    """
    return tuple(PluginPattern.parse(text, where=where) for text in texts)
