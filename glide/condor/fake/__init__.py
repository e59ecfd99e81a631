"""A pool without HTCondor: FakePool implements the ports of glide.condor.ports in memory and in virtual time.

The modules describe HTCondor's behaviour as glide uses it, with the times that were measured on HTCondor 25.14 with the
settings of an embedded pool (glide.condor.knobs). tests/test_ports.py runs the same tests on FakePool and on HTCondor.
tests/test_fake_pool.py tests the rest in virtual time. No test compares the following behaviour with HTCondor:
- a waiting job starts on the dead lane of a removed job (this was measured, but a test would take 25 s)
- dead lanes that no job has claimed get jobs, which never start there
- a lane refuses a matched job, and the schedd then forgets to match this job
- the schedd notifies a shadow at most once in 30 s
- the jobs of a glidein that is stopped with a warning are idle immediately

Not modelled:
- the duration of calls: no time passes during a call
- several users, fair share, and limits on the number of running jobs
- jobs that are not invocation jobs: all jobs that start are served by a model server
- the model server's limits: a record has no timeout, an engine does not crash, and an input has no maximum size
- the exact order in which an engine gets the records of several jobs: here, the oldest job comes first
- early streaming: a server streams before the second is over if it has 256 new results
- the fraction of a second in which a removed or held job leaves a living node
- FileRemaps: only its presence counts
"""

from glide.condor.fake.pool import FakePool, echo

__all__ = ["FakePool", "echo"]
