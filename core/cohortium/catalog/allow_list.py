"""Lists of plugins, by name *and* distribution.

    cohortium:gaussian              the plugin `gaussian` of the distribution `cohortium`
    gaussian                        the same: a bare name is one of ours
    cohortium-example:toy==1.2      of one version, letter for letter
    cohortium-example:*             all that a distribution has
    cohortium                       all of ours

Any distribution may call a plugin `gaussian`. So a list of allowed plugins by that name alone would
admit any distribution that takes the name. Names of distributions are compared according to PEP
503: case, and runs of `-`, `_` and `.`, make no difference.
"""

from __future__ import annotations

import re

from attrs import frozen

from cohortium.errors import RequestError
from cohortium.third_party import truncated

OWN_DISTRIBUTION = "cohortium"
"""The distribution of this module."""

_FORM = re.compile(
    r"(?:(?P<distribution>[A-Za-z0-9][\w.-]*):)?(?P<plugin>\*|[\w.-]+)(?:==(?P<version>[\w.+!-]+))?",
    re.ASCII,
)


def normalize_name(name: str) -> str:
    """Return the normal form of a distribution's name (PEP 503).

    >>> normalize_name("Acme_Split.tools")
    'acme-split-tools'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


@frozen
class PluginPattern:
    """One entry of a list of plugins.

    Attributes:
        distribution: Name of the distribution in the normal form, or empty if the entry is a bare
            name.
        plugin: Name of the plugin, or "*" for every plugin.
        version: Version of the distribution, or empty for any version.
    """

    distribution: str
    plugin: str
    version: str = ""

    @classmethod
    def parse(cls, text: str, *, where: str) -> PluginPattern:
        """Return the entry that `text` describes.

        Raises:
            RequestError: The text is not an entry.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None or (found["plugin"] == "*" and not found["distribution"]):
            raise RequestError(
                f"{where}: {truncated(text, 80)!r} names no plugin; write distribution:plugin or "
                "distribution:plugin==version, as in cohortium:gaussian, or distribution:* for all "
                "of one."
            )
        return cls(
            normalize_name(found["distribution"] or ""), found["plugin"], found["version"] or ""
        )

    def allows(self, distribution: str, plugin: str, version: str) -> bool:
        """Return whether the entry allows this plugin.

        A bare name allows one of our plugins, or our distribution as a whole.
        """
        if not self.distribution and normalize_name(self.plugin) == OWN_DISTRIBUTION:
            return self._is(distribution, OWN_DISTRIBUTION, version)
        return self.plugin in ("*", plugin) and self._is(
            distribution, self.distribution or OWN_DISTRIBUTION, version
        )

    def blocks(self, distribution: str, plugin: str, version: str) -> bool:
        """Return whether the entry blocks this plugin.

        A bare name blocks a plugin or a distribution of any party.
        """
        if self.distribution:
            return self.plugin in ("*", plugin) and self._is(
                distribution, self.distribution, version
            )
        named = {normalize_name(plugin), normalize_name(distribution)}
        return normalize_name(self.plugin) in named and self.version in ("", version)

    def _is(self, distribution: str, wanted: str, version: str) -> bool:
        return normalize_name(distribution) == wanted and self.version in ("", version)


def parse_patterns(texts: tuple[str, ...] | list[str], *, where: str) -> tuple[PluginPattern, ...]:
    """Return the entries of a list.

    Raises:
        RequestError: A text is not an entry.
    """
    return tuple(PluginPattern.parse(text, where=where) for text in texts)
