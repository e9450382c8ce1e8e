"""Atheris' program: `NUAGE_FUZZ_TARGET` names the target, arguments are libFuzzer's.

With `NUAGE_FUZZ_SEEDS` the target's seeds are written to that folder, and nothing else is done.
`--list` prints the targets. Atheris is installed apart from all else (`tools/fuzz`).
"""

import ast
import os
import sys
from pathlib import Path


def main() -> None:
    if sys.argv[1:] == ["--list"]:  # without an import that takes seconds
        source = ast.parse((Path(__file__).parent / "targets.py").read_text())
        for node in source.body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "TARGETS":
                assert isinstance(node.value, ast.Dict)
                names = (ast.literal_eval(key) for key in node.value.keys if key)
                sys.stdout.writelines(f"{name}\n" for name in names)
        return
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with atheris.instrument_imports(include=["nuage"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[os.environ["NUAGE_FUZZ_TARGET"]]
    if folder := os.environ.get("NUAGE_FUZZ_SEEDS"):
        for number, seed in enumerate(target.seeds()):
            (Path(folder) / f"seed-{number:02}").write_bytes(seed)
        return
    atheris.Setup([*sys.argv, f"-max_len={target.bytes_max}"], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
