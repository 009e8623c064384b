"""The fuzz by hand: ``python tests/differential/run.py --programs 50000 --seed 1``. Ends with what was seen."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress

from fuzz import Disagreement, Fuzz, examples
from hypothesis import HealthCheck, Phase, given, seed, settings
from upstream import Upstream


class Enough(KeyboardInterrupt):
    """The time is over; hypothesis lets nothing else through."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after so long, whatever was asked for"
    )
    parser.add_argument("--keep-going", action="store_true", help="print disagreements as they are, and go on")
    options = parser.parse_args()
    began = time.monotonic()
    with Upstream() as upstream:
        fuzz = Fuzz(upstream)
        failures: list[Disagreement] = []

        @seed(options.seed)
        @settings(
            max_examples=options.programs,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(examples)
        def check(example: object) -> None:
            if time.monotonic() - began > options.minutes * 60:
                raise Enough
            try:
                fuzz.example(example)  # type: ignore[arg-type]
            except Disagreement as found:
                if not options.keep_going:
                    raise
                print(found, file=sys.stderr, flush=True)
                failures.append(found)
            if fuzz.seen["programs"] % 1000 == 0:
                print(
                    f"{fuzz.seen['programs']} programs, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
                )

        with suppress(Enough):
            fuzz.run(check)
        for title, counted in (("seen", fuzz.seen), ("differences", fuzz.fired)):
            print(f"{title}:")
            for name, count in sorted(counted.items()):
                print(f"  {count:8} {name}")
        print(
            f"{fuzz.seen['programs']} programs with seed {options.seed}: {upstream.jobs} jobs, "
            f"{len(failures)} disagreements, in {time.monotonic() - began:.0f} s"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
