"""A site's server, configuration and policy, and the study lead's side."""

import logging

# A program that embeds a site's server has a silent log unless it configures one.
logging.getLogger(__name__).addHandler(logging.NullHandler())
