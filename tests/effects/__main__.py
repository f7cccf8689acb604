"""Run studies: `PYTHONPATH=tests python -m effects [tune/lisa ...] [--seeds 5] [--jobs 2]`.

Each study's numbers are written to `docs/effects/<axis>/<method>.json` as soon as it ends, and `docs/effects.md` is
written anew from all that lie there. Without names every study runs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from effects.bench import BASES
from effects.running import kept, make_base, run, studies, words, write, write_page
from effects.study import SEEDS
from temper.lab.bases import default_cache
from temper.pipeline.worker import end_with_parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="axis/method")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--words", action="store_true", help="train nothing: take claims and findings anew")
    chosen = parser.parse_args()
    if chosen.words:
        for found in kept():
            write({**found, **words(found["method"])})
        write_page()
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    known = studies()
    unknown = sorted(set(chosen.names) - set(known))
    if unknown:
        sys.exit(f"{', '.join(unknown)}: no such study; there are {', '.join(known)}")
    began = time.monotonic()
    names, failed = chosen.names or known, []
    with ProcessPoolExecutor(chosen.jobs, get_context("spawn"), initializer=end_with_parent) as pool:
        # Made before two studies would make them side by side.
        list(pool.map(make_base, *zip(*itertools.product(BASES, range(chosen.seeds)), strict=True)))
        running = {pool.submit(run, name, chosen.seeds, default_cache()): name for name in names}
        for future in as_completed(running):
            name = running[future]
            try:
                found = future.result()
            except Exception as error:  # one study that fails must not lose the others
                failed.append(name)
                print(f"{name}: failed: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            write(found)
            for each in found["contrasts"]:
                said = f"{each['mean']:.3g} ({each['low']:.3g} to {each['high']:.3g})"
                print(f"{name}: {each['name']}: {said}: {each['verdict']}", flush=True)
    write_page()
    print(f"{len(names) - len(failed)} studies in {(time.monotonic() - began) / 60:.1f} minutes: docs/effects.md")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
