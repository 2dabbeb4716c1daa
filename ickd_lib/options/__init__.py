"""The options of the command line: `commands` has the parser, `groups` the options that several commands share."""

from ickd_lib.options import checks
from ickd_lib.options.commands import parser
from ickd_lib.options.groups import recipe_defaults
from ickd_lib.options.networks import check_networks

__all__ = ["check_networks", "checks", "parser", "recipe_defaults"]
