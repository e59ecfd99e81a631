"""Use an access point through its login host: connect by SSH, run HTCondor's commands, deploy code, check the host."""

from glide.ssh.access_point import access_point_at
from glide.ssh.link import SshError

__all__ = ["SshError", "access_point_at"]
