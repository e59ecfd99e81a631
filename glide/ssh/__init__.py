"""Access points behind a login host: one connection to it, HTCondor's commands there, what is deployed, what it has."""

from glide.ssh.access_point import access_point_at
from glide.ssh.link import LinkError

__all__ = ["LinkError", "access_point_at"]
