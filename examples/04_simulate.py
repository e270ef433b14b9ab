"""Record a request once, then replay policies over it without the model: what does each keep, and what does it lose?

    python examples/04_simulate.py [--keep 0.2]

Nothing is downloaded: the model comes with the package. `kvpolicy simulate` prints more, and draws it.
"""

import argparse
import tempfile
from pathlib import Path

from kvpolicy import KeepRatio, elastic_cache, h2o, streaming_llm
from kvpolicy_hf import enable
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model
from kvpolicy_hf.simulate import clairvoyant, load_record, record, replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.2, help="share of the cache that each policy may keep")
    keep = parser.parse_args().keep

    model, processor = load_model("demo")
    enable(model)
    case = next(case for case in drawn_cases(0, pictures=1) if case.task == "row")  # the longest answer
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "row.safetensors")
        record(model, encode(processor, case.prompt, model.device), file, new_tokens=16)
        data = load_record(file)  # from here on no model is needed
    print(f"{data.prompt} prompt tokens, {data.steps} decode steps\n")

    policies = {
        "elastic_cache": elastic_cache(keep=keep),
        "h2o": h2o(keep=keep),
        "streaming_llm": streaming_llm(keep=keep),
        "clairvoyant": clairvoyant(data, KeepRatio(keep)),  # knows which rows will be attended to
    }
    print(f"{'':<16}{'mass kept':>10}{'recall':>10}{'error':>8}  by layer")
    for name, policy in policies.items():
        result = replay(data, policy)
        layers = " ".join(f"{error:.2f}" for error in result.error.mean(axis=0))
        mass, recall, error = result.mass.mean(), result.recall.mean(), result.error.mean()
        print(f"{name:<16}{mass:>10.1%}{recall:>10.1%}{error:>8.2f}  {layers}")


if __name__ == "__main__":
    main()
