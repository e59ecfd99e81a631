"""Open the folder of a sweep, and lock it, so that no other driver uses it at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from glide.config import SUMMARY
from glide.errors import InputError
from glide.sweep import check_cache
from glide.sweep.out import Lock, RunState, internal_path, known_cells, move_aside, read_state, unwritable
from glide.sweep.prepare import Sweep
from glide.sweep.results import Results
from glide.sweep.status import check_same_sweep, request_index


@contextmanager
def opened(
    models: Sequence[Sweep], new_run: str, *, resume: bool = False, again: bool = False, retry: bool = False,
    only: str | None = None,
) -> Iterator[list[Results]]:  # fmt: skip
    """Open the results of a sweep's models for a `with` block, and lock `out` during the block.

    Args:
        models: the sweep of each model. They have the same sweep file.
        new_run: a name for the run. If a model is new, the name of its run begins with this name.
        resume: whether to raise an InputError if `out` has no results.
        again: whether to move existing results aside and start over.
        retry, only: as in Results.load.

    Raises:
        InputError: `out` has results of another sweep, another driver uses `out`, or `out` cannot be written.
    """
    first = models[0]
    if resume and not any(internal_path(each.out, "run.json").exists() or known_cells(each.out) for each in models):
        out = first.out_of_all
        raise InputError(f"{first.source}: nothing to resume: {out} has no results; start with `glide sweep run`")
    with ExitStack() as stack:
        if first.model:
            stack.enter_context(closing(Lock(first.out_of_all)))
        found = []
        for sweep in models:
            run = f"{new_run}-{sweep.model}" if sweep.model else new_run
            found.append(stack.enter_context(closing(open_results(sweep, run, again=again, retry=retry, only=only))))
        fingerprints = {sweep.model: sweep.fingerprints for sweep in models}
        try:
            if again and first.model:
                (first.out_of_all / SUMMARY).unlink(missing_ok=True)  # each model's summary has been moved aside
            check_cache.save(first.out_of_all, first.check_key, first.records, fingerprints, first.labels)
        except OSError as error:
            raise unwritable(first.out_of_all, error) from None
        yield found


def open_results(
    sweep: Sweep, new_run: str, *, again: bool = False, retry: bool = False, only: str | None = None
) -> Results:
    """Open the results of one model, and lock the model's folder until the results are closed.

    The arguments and errors are those of `opened`.
    """
    out = sweep.out
    lock = Lock(out)
    try:
        abandoned_run = aside = None
        if again:
            before = read_state(out)
            aside = move_aside(out, sweep.cells, sweep.model)
            abandoned_run = before.run if before and not before.finished else None
        state = read_state(out)
        indexes = {cell: request_index(sweep, cell) for cell in sweep.cells}
        check_same_sweep(sweep, state, indexes)
        state = state or RunState(sweep.file.name, str(sweep.source.absolute()), new_run, sweep.digest, False)
        results = Results(sweep, lock, indexes, state)
        results.abandoned_run = abandoned_run
        if aside:
            results.notes.append(f"moved the earlier results of {out} to {aside}")
        results.load(retry, only)
        return results
    except OSError as error:
        lock.close()
        raise unwritable(out, error) from None
    except BaseException:
        lock.close()
        raise
