"""Run the programs that decompose matrices again and again, each in a process with a time limit.

    python benchmarks/soak_linear_algebra.py [--runs 20] [--seconds 600] [--only ridge,blocks]

Batched calls of LAPACK in one program can wait for each other for ever on a CPU of two cores, in
some runs and not in others, so that one run shows nothing. Each program here is one that did, or is
built like one. A process that has not ended within the limit is counted as hung and ended. The
exit code is 1 if one hung or failed. Best on a quiet machine of two cores.
"""

import argparse
import subprocess
import sys

PROGRAMS = {
    "ridge": """
from jaxcomp.linear_regression import draw_solutions, random_problem, ridge_solutions
problem = random_problem(jax.random.key(0), 50)
for n in (80, 160, 400, 1000, 5000):
    found = draw_solutions(problem, jax.random.key(n), num_examples=n, num_datasets=4000)
    done = ridge_solutions(problem, found, jnp.ones(9), jnp.ones(4), num_examples=n)
    jax.block_until_ready(done)
""",
    "simulation": """
from jaxcomp.linear_regression import ADAPTIVE, CHANNELS, CONTROLS, random_problem, simulate
problem = random_problem(jax.random.key(0), 50)
simulate(problem, jax.random.key(1), num_examples=80, num_datasets=1000, draws="examples",
         compressors=(*CHANNELS, *CONTROLS, *ADAPTIVE))
""",
    "blocks": """
from jaxcomp.curvature import CurvaturePolicy
for size in (2, 8, 40):
    blocks = {name: jax.random.normal(jax.random.key(i), (500 + i, size, size))
              for i, name in enumerate("abcd")}
    for _ in range(20):
        jax.block_until_ready(CurvaturePolicy().apply_blocks(blocks))
""",
    "vectors": """
from jaxcomp.quantizers import vector_kmeans
points = jax.random.normal(jax.random.key(0), (4, 5000, 4))
for form in ("none", "published", "monotone"):
    jax.block_until_ready(vector_kmeans(points, num_clusters=64, key=jax.random.key(1),
                                        penalty_form=form, diameter_penalty=0.01))
""",
    "rate-distortion": """
from jaxcomp.rate_distortion import blahut_arimoto
for size in (20, 90):
    places = jnp.linspace(-3, 3, size)
    jax.block_until_ready(blahut_arimoto(jnp.full((4, size), 1 / size),
                                         (places[:, None] - places) ** 2,
                                         jnp.geomspace(0.1, 10, 16)))
""",
}


def main() -> int:
    """Run every program as often as asked, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=600.0, help="limit of one process")
    parser.add_argument("--only", default=",".join(PROGRAMS), help="names, by commas")
    options = parser.parse_args()
    is_sound = True
    for name in options.only.split(","):
        source = "import jax, jax.numpy as jnp\n" + PROGRAMS[name]
        counts = {"ended": 0, "hung": 0, "failed": 0}
        for _ in range(options.runs):
            counts[_outcome(source, options.seconds)] += 1
        is_sound &= counts["ended"] == options.runs
        print(name, ", ".join(f"{number} {word}" for word, number in counts.items()), flush=True)
    return 0 if is_sound else 1


def _outcome(source: str, seconds: float) -> str:
    try:
        done = subprocess.run([sys.executable, "-c", source], timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "hung"
    return "failed" if done.returncode else "ended"


if __name__ == "__main__":
    sys.exit(main())
