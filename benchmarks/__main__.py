"""``python -m benchmarks``: measure, write ``benchmarks/results/``, refresh the tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import (
    against_old,
    alone,
    composed,
    composed_memory,
    composed_time,
    curves,
    environment,
    figures,
    fuzz,
    growth,
    guided,
    kills,
    methods,
    page,
    peers,
    quality,
    questions,
    ray_job,
    recovery,
    scale,
    serving,
    sets,
    soak,
    speed,
    tables,
    throughput,
    tried,
    trust,
    upgrade,
    watching,
)

PARTS = (
    "quality",
    "methods",
    "alone",
    "tried",
    "peers",
    "calibration",
    "power",
    "curves",
    "speed",
    "growth",
    "old",
    "serving",
    "questions",
    "throughput",
    "recovery",
    "composed",
    "composed_time",
    "composed_memory",
    "report",
    "upgrade",
    "watching",
    "kills",
    "fuzz",
    "guided",
    "soak",
    "scale",
    "ray",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", choices=[*PARTS, "tables", "all"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="BEIR folders")
    parser.add_argument("--cache", type=Path, default=Path("out/bench-cache"))
    parser.add_argument("--sets", nargs="+", choices=sets.NAMES, default=list(sets.NAMES))
    parser.add_argument(
        "--variants", nargs="+", choices=list(methods.VARIANTS), default=list(methods.VARIANTS)
    )
    parser.add_argument("--peers", nargs="+", choices=peers.PEERS, default=list(peers.PEERS))
    parser.add_argument("--black-box", type=Path, help="folder of a frozen model; MiniLM without")
    parser.add_argument("--epochs", type=int, default=6, help="of composed, at most")
    parser.add_argument("--published", action="store_true", help="composed: its recipe as well")
    parser.add_argument(
        "--runs",
        type=int,
        help="of calibration (200), power (50 per size), composed_time (1), kills (60), "
        "fuzz (1000 per format), guided (60 seconds per format) and soak (200,000)",
    )
    parser.add_argument("--mpnet", type=Path, help="folder of all-mpnet-base-v2, for upgrade")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each training")
    parser.add_argument("--first-seed", type=int, default=0, help="of the runs of methods")
    parser.add_argument(
        "--skip-existing", action="store_true", help="methods: keep runs of this version"
    )
    arguments = parser.parse_args()
    what = arguments.what
    if what in ("quality", "all"):
        found = quality.run(
            arguments.data,
            arguments.cache,
            tuple(arguments.sets),
            tuple(quality.VARIANTS),
            arguments.seeds,
        )
        if tuple(arguments.sets) == sets.NAMES:
            command = f"python -m benchmarks quality --seeds {arguments.seeds}"
            environment.save("quality", command, {"sets": found})
    if what in ("methods", "all"):
        methods.run(
            arguments.data,
            arguments.cache,
            tuple(arguments.sets),
            tuple(arguments.variants),
            arguments.seeds,
            first_seed=arguments.first_seed,
            skip_existing=arguments.skip_existing,
        )
    if what in ("alone", "all"):
        names = tuple(arguments.sets)
        alone.run(arguments.data, arguments.cache, names, arguments.seeds)
    if what in ("tried", "all"):
        tried.run(arguments.data, arguments.cache, tuple(arguments.sets))
    if what in ("peers", "all"):
        peers.run(arguments.data, arguments.cache, tuple(arguments.sets), tuple(arguments.peers))
    if what in ("calibration", "all"):
        trust.calibrate(arguments.data, arguments.cache, arguments.runs or 200)
    if what in ("power", "all"):
        names = tuple(name for name in arguments.sets if name in trust.SIZES)
        trust.power(arguments.data, arguments.cache, names, arguments.runs or 50)
    if what in ("curves", "all"):
        curves.run(arguments.data, arguments.cache, tuple(arguments.sets))
    if what in ("speed", "all"):
        speed.run(arguments.data, arguments.cache)
    if what in ("growth", "all"):
        growth.run(arguments.data, arguments.cache)
    if what in ("old", "all"):
        environment.save("old", "python -m benchmarks old", against_old.run(arguments.data))
    if what in ("serving", "all"):
        environment.save("serving", "python -m benchmarks serving", serving.run())
    if what in ("questions", "all"):
        found = questions.run(arguments.data, arguments.cache)
        environment.save("questions", "python -m benchmarks questions", {"sets": found})
    if what in ("throughput", "all"):
        environment.save("throughput", "python -m benchmarks throughput", throughput.run())
    if what in ("recovery", "all"):
        environment.save("recovery", "python -m benchmarks recovery", recovery.run())
    box = arguments.black_box
    if what in ("composed", "all"):
        names = tuple(arguments.sets)
        variants = tuple(composed.VARIANTS) if arguments.published else (composed.TRAINED,)
        composed.run(arguments.data, arguments.cache, box, names, arguments.epochs, variants)
    if what in ("composed_time", "all"):
        composed_time.run(arguments.data, arguments.cache, box, 1, arguments.runs or 1)
    if what in ("composed_memory", "all"):
        composed_memory.run()
    if what in ("report", "all"):
        page.run(arguments.data, arguments.cache)
    if what in ("watching", "all"):
        rows = watching.run(arguments.data, arguments.cache)
        environment.save("watching", "python -m benchmarks watching", {"rows": rows})
    if what in ("kills", "all"):
        environment.save("kills", "python -m benchmarks kills", kills.run(arguments.runs or 60))
    if what in ("fuzz", "all"):
        environment.save("fuzz", "python -m benchmarks fuzz", fuzz.run(arguments.runs or 1000))
    if what == "guided":  # of no part in "all", as it needs an extra of its own
        names, seconds = [*fuzz.FORMATS, fuzz.ANSWER], arguments.runs or 60
        command = f"python -m benchmarks guided --runs {seconds}"
        found = {"seconds": seconds, "formats": guided.run(names, seconds)}
        environment.save("guided", command, found)
    if what in ("soak", "all"):
        environment.save("soak", "python -m benchmarks soak", soak.run(arguments.runs or 200_000))
    if what in ("scale", "all"):
        scale.run(arguments.data, arguments.cache)
    if what in ("ray", "all"):
        environment.save("ray", "python -m benchmarks ray", ray_job.run(arguments.data))
    if what == "upgrade" or (what == "all" and arguments.mpnet is not None):
        if arguments.mpnet is None:
            parser.error("upgrade needs --mpnet")
        command = "python -m benchmarks upgrade --mpnet all-mpnet-base-v2"
        environment.save(
            "upgrade", command, upgrade.run(arguments.data, arguments.cache, arguments.mpnet)
        )
    figures.refresh()  # first, as tables link to them
    tables.refresh()


if __name__ == "__main__":
    main()
