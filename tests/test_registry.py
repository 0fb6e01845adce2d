"""The registry: listing, filters and errors; and the catalog's numbers against the families that they describe."""

import json
import operator
import re
import subprocess
import sys
from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

import zoo
from zoo import registry
from zoo.checkpoint import sha256_of
from zoo.loading import embedded_folder, family_class
from zoo.registry import Entry, UnknownNameError, Weights

ROOT = Path(registry.__file__).parents[1]
FIELDS = [f.name for f in fields(Entry)]
SIZED = ("lt", "le", "gt", "ge")


def entry(name, **more):
    plain = {"family": "stand_in", "modality": "image", "summary": "", "layout": "1d", "discrete": True}
    return Entry(**{"name": name, **plain, **more})


STAND_INS = [
    entry("b10", tokens=10, tags=("rvq", "speech"), license_weights="MIT", bits_per_pixel=0.5, vocabulary=(8, 8)),
    entry("b2", tokens=2, tags=("vq",), native_size=(64, 64), ordered=True, weights=Weights()),
    entry("b2_x", modality="audio", sample_rate=24000, causal=True, weights=Weights(repo="a/b"), config={"width": 3}),
    entry("a", modality="video", family="other", discrete=False, channels=4, parameters=7),
]


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(registry, "_entries", lambda: {e.name: e for e in STAND_INS})


@pytest.fixture
def own_entries(monkeypatch):
    monkeypatch.setattr(registry, "_EXTRA", {})
    monkeypatch.setattr(registry, "_ORIGIN", dict(registry._ORIGIN))


# -- listing -----------------------------------------------------------------------------------------------------------------------


def test_names_are_in_natural_order(stand_ins):
    assert zoo.list_models() == ["a", "b2", "b2_x", "b10"]
    assert [e.name for e in zoo.find()] == ["a", "b2", "b2_x", "b10"]


def test_patterns(stand_ins):
    assert zoo.list_models("b*") == ["b2", "b2_x", "b10"]
    assert zoo.list_models("b?") == ["b2"]
    assert zoo.list_models("[ab]") == ["a"]
    assert zoo.list_models("b*", exclude="*_x") == ["b2", "b10"]
    assert zoo.list_models(exclude="*") == []
    assert zoo.list_models("b*", modality="image", exclude="b2") == ["b10"]
    assert zoo.list_models("nothing*") == []


def names(**filters):
    return [e.name for e in zoo.find(**filters)]


@pytest.mark.parametrize("name", [*FIELDS, "embedded"])
def test_every_form_of_filter_on_every_field(stand_ins, name):
    everybody = {e.name: getattr(e, name) for e in STAND_INS}

    def wanted(meets):
        return sorted((n for n, value in everybody.items() if meets(value)), key=["a", "b2", "b2_x", "b10"].index)

    for value in everybody.values():
        if name == "tags":
            for tag in value:
                assert names(tags=tag) == names(tags__contains=tag) == wanted(lambda v, tag=tag: tag in v)
        else:
            assert names(**{name: value}) == wanted(lambda v, value=value: v == value)
        assert names(**{f"{name}__ne": value}) == wanted(lambda v, value=value: v != value)
        assert names(**{f"{name}__in": [value]}) == wanted(lambda v, value=value: v == value)
        for op in SIZED:
            compare = getattr(operator, op)
            forms = [f"{name}__{op}"] + ([f"{'max' if op == 'le' else 'min'}_{name}"] if op in ("le", "ge") else [])
            for form in forms:
                try:
                    expected = wanted(lambda v, value=value, compare=compare: v is not None and compare(v, value))
                except TypeError:
                    if any(v is not None for v in everybody.values()):
                        with pytest.raises(ValueError, match=rf"zoo\.find: {form}="):
                            names(**{form: value})
                    continue
                assert names(**{form: value}) == expected
        parts = list(value)[:1] if isinstance(value, (str, tuple, dict)) else []
        for part in parts:
            expected = wanted(lambda v, part=part: v is not None and part in v)
            assert names(**{f"{name}__contains": part}) == expected


def test_filters_join(stand_ins):
    assert names(modality="image", max_tokens=5) == ["b2"]
    assert names(tokens__ge=2, tokens__lt=10, ordered=True) == ["b2"]
    assert names(embedded=True) == ["b2"]
    assert names(license_weights__ne="MIT") == ["a", "b2", "b2_x"], "an unknown licence is not MIT"


def test_none_meets_no_comparison_of_size(stand_ins):
    assert names(max_bits_per_pixel=1e9) == names(min_bits_per_pixel=0) == ["b10"]


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("modalty", "modality"),
        ("bits_per_pixl__lt", "bits_per_pixel"),
        ("max_token", "tokens"),
        ("license_weight", "license_weights"),
    ],
)
def test_an_unknown_field_gives_near_matches(key, near):
    with pytest.raises(ValueError, match=rf"zoo\.find: no field '{key}'.*Did you mean .*{near}.*Fields: name, family"):
        zoo.find(**{key: 1})


def test_an_unknown_comparison_is_an_unknown_field():
    with pytest.raises(ValueError, match=r"no field 'tokens__about'.*__lt, __le, __gt, __ge, __ne, __in, __contains"):
        zoo.find(tokens__about=3)


@pytest.mark.parametrize("wanted", [{"tokens__lt": "many"}, {"tokens__in": 3}, {"tokens__contains": 3}, {"native_size__le": 64}])
def test_a_comparison_that_makes_no_sense_names_the_filter(wanted):
    (key,) = wanted
    with pytest.raises(ValueError, match=rf"zoo\.find: {key}="):
        zoo.find(**wanted)


# -- looking up --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [zoo.info, zoo.load, zoo.create])
@pytest.mark.parametrize("error", [ValueError, KeyError, UnknownNameError])
def test_an_unknown_name_gives_three_near_matches(call, error):
    with pytest.raises(error) as caught:
        call("flextok_nanoo")
    text = str(caught.value)
    assert text.startswith("zoo has no tokenizer 'flextok_nanoo'. Closest: flextok_nano, ")
    near = re.search(r"Closest: (.*)\. `zoo list` shows all (\d+)\.", text)
    assert len(set(near[1].split(", "))) == 3
    assert set(near[1].split(", ")) <= set(zoo.list_models())
    assert int(near[2]) == len(zoo.list_models())


def test_an_empty_name_too():
    with pytest.raises(UnknownNameError, match="zoo has no tokenizer ''"):
        zoo.info("")


def test_info_gives_the_entry():
    assert [zoo.info(name).name for name in zoo.list_models()] == zoo.list_models()


# -- registering -------------------------------------------------------------------------------------------------------------------


def test_register_makes_an_entry_known(own_entries):
    own = entry("my_tokenizer", tags=("mine",))
    assert zoo.register(own) is own
    assert zoo.info("my_tokenizer") is own
    assert names(tags="mine") == ["my_tokenizer"]
    assert "my_tokenizer" in zoo.list_models()


def test_a_name_registered_twice_names_both_places(own_entries):
    zoo.register(entry("my_tokenizer"))
    with pytest.raises(ValueError, match=r"'my_tokenizer'") as caught:
        zoo.register(entry("my_tokenizer"))
    assert len(re.findall(r"test_registry\.py:\d+", str(caught.value))) == 2
    assert len(set(re.findall(r"test_registry\.py:\d+", str(caught.value)))) == 2


def test_a_name_of_the_catalog_cannot_be_taken(own_entries):
    with pytest.raises(ValueError, match=r"'flextok_nano'.*zoo\.catalog\.image.*test_registry\.py:\d+"):
        zoo.register(entry("flextok_nano"))


def test_only_entries_are_registered(own_entries):
    with pytest.raises(TypeError, match=r"zoo\.register: .*str.*Entry"):
        zoo.register("my_tokenizer")


def test_a_name_twice_in_the_catalog_names_both_files(monkeypatch):
    video = import_module("zoo.catalog.video")
    monkeypatch.setattr(video, "ENTRIES", (*video.ENTRIES, replace(zoo.info("flextok_nano"), modality="video")))
    monkeypatch.setattr(registry, "_ORIGIN", {})
    with pytest.raises(ValueError, match=r"zoo\.catalog\.video: entry 'flextok_nano'.*zoo\.catalog\.image"):
        registry._shipped.__wrapped__()


# -- entries -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Nano", "a__b", "_a", "a_", "2a", "a-b", "a b", "ä", "a\n"])
def test_a_name_that_is_not_snake_case_is_refused(name):
    with pytest.raises(ValueError, match="lower snake case"):
        entry(name)


def test_an_unknown_modality_is_refused():
    with pytest.raises(ValueError, match=r"Entry a: modality='text'.*image, video, audio"):
        entry("a", modality="text")


def test_entries_can_be_members_of_sets():
    assert len({*zoo.find(), *zoo.find()}) == len(zoo.list_models())


def test_each_file_of_image_entries_is_that_of_its_family():
    files = sorted((ROOT / "zoo" / "catalog" / "image").glob("[!_]*.py"))
    assert len(files) == len({e.family for e in zoo.find(modality="image") if e.name not in registry._EXTRA})
    for file in files:
        entries = import_module(f"zoo.catalog.image.{file.stem}").ENTRIES
        assert {(e.family, e.modality) for e in entries} == {(file.stem, "image")}
        assert all(zoo.info(e.name) is e for e in entries)


def test_the_catalog_does_not_follow_a_changed_dictionary():
    config = {"width": 3}
    own = entry("a", config=config)
    config["width"] = 4
    assert own.config == {"width": 3}


def tuples(value):
    return tuple(tuples(v) for v in value) if isinstance(value, list) else value


def test_to_dict_goes_to_json_and_back():
    for e in [*zoo.find(), *STAND_INS]:
        values = json.loads(json.dumps(e.to_dict(), allow_nan=False))
        assert None not in values.values()
        values = {key: tuples(value) for key, value in values.items()}
        if "weights" in values:
            values["weights"] = Weights(**values["weights"])
        values["config"] = {key: tuples(value) for key, value in values.get("config", {}).items()}
        assert Entry(**values) == e


# -- the catalog's numbers ---------------------------------------------------------------------------------------------------------
# A field that follows from the configuration is what the family says, or its default where the family does not speak of it.

NOT_DERIVED = {
    *("name", "family", "summary", "config", "weights", "trained_on", "training_pack", "training", "license_code"),
    *("license_weights", "notice", "paper", "source", "parameters", "recipe", "tags"),
}
DERIVED = [name for name in FIELDS if name not in NOT_DERIVED]
DEFAULTS = {f.name: None if f.default is MISSING else f.default for f in fields(Entry)}


@pytest.mark.parametrize("name", zoo.list_models())
def test_numbers_are_those_of_the_family(name):
    e = zoo.info(name)
    cls = family_class(e.family)
    layout = cls.layout_of(cls.Config.from_dict(e.config))
    assert set(layout) <= set(DERIVED)
    assert {"discrete", "stochastic_decode", "bits_per_second"} < set(DERIVED)
    for key in DERIVED:
        wanted = layout.get(key, DEFAULTS[key])
        if key in ("bits_per_pixel", "bits_per_second", "frame_rate") and wanted is not None:
            wanted = pytest.approx(wanted, rel=1e-4)
        assert getattr(e, key) == wanted, f"{name}.{key} is {getattr(e, key)}, its configuration gives {wanted}"
    if e.discrete:
        assert e.codebook_size == max(e.vocabulary)
        assert e.depth == len(e.vocabulary)
        assert e.channels is None
    else:
        assert e.channels >= 1
        assert e.codebook_size is None
        assert e.vocabulary == ()


@pytest.mark.parametrize("name", zoo.list_models())
def test_parameters_are_counted(name):
    e = zoo.info(name)
    with torch.device("meta"):
        state = zoo.create(name).state_dict()
    if e.parameters is None:
        assert e.weights is None, "an entry with weights says how many parameters they have"
    else:
        assert e.parameters == sum(value.numel() for value in state.values())


@pytest.mark.parametrize("name", zoo.list_models())
def test_licences_and_origin_are_stated_or_none(name):
    e = zoo.info(name)
    for licence in (e.license_code, e.license_weights):
        assert licence is None or re.fullmatch(r"(LicenseRef-)?[A-Za-z0-9][A-Za-z0-9.+-]*", licence), licence
    if e.weights is not None and e.license_weights is not None and re.search(r"LicenseRef|-NC\b", e.license_weights):
        assert e.notice, "restricted weights need a notice"
    assert e.source is None or re.fullmatch(r"[\w.-]+/[\w.-]+(@[0-9a-f]{7,40})?", e.source), e.source
    assert e.summary.endswith(".")


@pytest.mark.parametrize("name", zoo.list_models())
def test_what_an_entry_points_to_is_there(name):
    e = zoo.info(name)
    assert (ROOT / "zoo" / e.modality / f"{e.family}.py").is_file()
    assert e.recipe is None or (ROOT / "recipes" / "configs" / f"{e.recipe}.yaml").is_file()
    if e.embedded:
        path = embedded_folder() / e.weights.file
        assert path.stat().st_size == e.weights.size
        assert sha256_of(path) == e.weights.sha256


# -- no torch ----------------------------------------------------------------------------------------------------------------------


def test_listing_imports_no_torch_and_no_family():
    code = (
        "import sys, zoo; zoo.list_models('*', modality='image'); zoo.find(max_tokens=64); zoo.info('flextok_nano').to_dict();"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy', 'diffusers', 'lightning', 'transformers')"
        " or m.startswith('zoo.image')]; assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_generators_are_behind_the_front_door_without_torch():
    code = (
        "import sys, zoo; assert 'zoo.generators' not in sys.modules; names = zoo.generators.list_models(); assert names;"
        "assert zoo.generators.info(names[0]).name == names[0]; assert 'torch' not in sys.modules;"
        "zoo.generators.Generator; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_front_door():
    for name in zoo.__all__:
        assert getattr(zoo, name).__doc__
    assert dir(zoo) == sorted(zoo.__all__)
    with pytest.raises(AttributeError, match="module 'zoo' has no attribute 'models'"):
        zoo.models  # noqa: B018
