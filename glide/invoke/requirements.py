"""The requirements that a driver's jobs have for lanes, as ClassAd expressions."""

from __future__ import annotations

from glide.vocabulary import IDENTITY, Job, Machine, State

# The collector writes an identity into each ad: the identity of the daemon that has sent the ad. Only glideins have
# identities that begin with "glidein-". A job's requirements check this beginning. So no other daemon of the pool can
# pretend to be a lane. The file submit_templates/invocation.sub contains a copy of these requirements.
GLIDEIN = f'substr(TARGET.AuthenticatedIdentity, 0, {len(IDENTITY)}) =?= "{IDENTITY}"'
_USABLE = ",".join(State.USABLE)  # before the template is warm, a job waits on the lane
REQUIREMENTS = (
    f'TARGET.{Machine.TEMPLATE} =?= MY.{Job.TEMPLATE} && stringListMember(TARGET.{Machine.STATE}, "{_USABLE}")'
    f" && (TARGET.{Machine.PROTOCOL} ?: 1) >= (MY.{Job.PROTOCOL} ?: 1) && {GLIDEIN}"
)
WARM_FIRST = f'TARGET.{Machine.STATE} =?= "{State.WARM}"'
