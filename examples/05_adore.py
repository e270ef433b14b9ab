"""Release rows to host memory and bring them back when they matter: fit ADORE's controller to a model, and use it.

    python examples/05_adore.py [--rows 14] [--recall 8] [--steps 300]

Nothing is downloaded: the model comes with the package. It reads out a row of a picture, so that every new token looks
at another part of the prompt: what was released a moment ago is needed now.
"""

import argparse

from kvpolicy import FixedRows, adore, h2o
from kvpolicy_hf import PolicyCache, enable, train_controller
from kvpolicy_hf.demo.cases import drawn_cases
from kvpolicy_hf.demo.prompts import encode
from kvpolicy_hf.loading import load_model
from kvpolicy_hf.simulate import clairvoyant, record, replay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=14, help="rows that stay in each head")
    parser.add_argument("--recall", type=int, default=8, help="rows of each head that may return at every step")
    parser.add_argument("--steps", type=int, default=300, help="training steps of the controller")
    args = parser.parse_args()

    model, processor = load_model("demo")
    enable(model)
    prompts = [
        encode(processor, case.prompt, model.device) for case in drawn_cases(0, pictures=5) if case.task == "row"
    ]
    *lessons, test = [record(model, inputs, new_tokens=16) for inputs in prompts]
    controller = train_controller(lessons, steps=args.steps)  # to_file() and from_file() keep it
    print(f"{controller} from {len(lessons)} records; tested on another of {test.prompt} prompt tokens\n")

    policies = {
        "h2o": h2o(rows=args.rows),
        "adore, moving average": adore(rows=args.rows, recall=args.recall),
        "adore, controller": adore(rows=args.rows, recall=args.recall, controller=controller),
        "clairvoyant": clairvoyant(test, FixedRows(args.rows)),  # knows which rows will be attended to
    }
    print(f"{'':<24}{'mass kept':>10}{'error':>8}{'rows that came back':>22}")
    for name, policy in policies.items():
        result = replay(test, policy)
        print(f"{name:<24}{result.mass.mean():>10.1%}{result.error.mean():>8.2f}{result.report.recalled:>22}")

    cache = PolicyCache(model, policies["adore, controller"], inputs=prompts[-1])
    model.generate(**prompts[-1], cache=cache, max_new_tokens=8, do_sample=False)
    print(f"\n{cache.report()}")


if __name__ == "__main__":
    main()
