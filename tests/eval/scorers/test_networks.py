"""The official networks: what is said where they are not to be had, and that they are used rightly where they are."""

import hashlib
import urllib.error

import numpy as np
import pytest
import torch
from torch import nn

from eval.scorers import make_scorers
from eval.scorers.networks import InceptionFeatures, LPIPSNetwork, PictureFeatures, PublishedWeights, WeightsUnavailableError


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of torch, and a network that refuses."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("scorer", "file", "instead"),
    [
        ("lpips", "alexnet-owt-7be5be79.pth", "pdist_mbv2"),
        ("lpips_vgg", "vgg16-397923af.pth", "pdist_mbv2"),
        ("rfid", "weights-inception-2015-12-05-6726825d.pth", "kid_mbv2"),
    ],
)
def test_offline_there_is_one_clear_error(scorer, file, instead, home):
    with pytest.raises(WeightsUnavailableError) as caught:
        make_scorers([scorer])
    text = str(caught.value)
    for part in (f"scorer {scorer}:", file, str(home), "Name or service not known", "https://", "TORCH_HOME", instead):
        assert part in text
    assert not list(home.glob("*"))


def test_offline_mode_requests_nothing(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsUnavailableError, match=r"HF_HUB_OFFLINE is set, so nothing was requested"):
        make_scorers(["lpips"])


def test_a_damaged_file_is_refused(home):
    home.mkdir(parents=True)
    (home / "alexnet-owt-7be5be79.pth").write_bytes(b"not weights")
    with pytest.raises(WeightsUnavailableError, match=r"is damaged: its SHA-256 starts with .*, not 7be5be79. Delete it"):
        make_scorers(["lpips"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(ModuleNotFoundError, match=r"package lpips is not installed. .* 'tokenizer-zoo\[eval\]'"):
        LPIPSNetwork("alex")


def publish(folder, state) -> PublishedWeights:
    """Write weights as a server would have them, named by their hash; gives where they are."""
    torch.save(state, folder / "part")
    start = hashlib.sha256((folder / "part").read_bytes()).hexdigest()[:8]
    path = (folder / "part").rename(folder / f"net-{start}.pth")
    return PublishedWeights(path.as_uri(), "pdist_mbv2")


def test_a_wrong_download_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "net-00000000.pth").write_bytes(b"other bytes")
    weights = PublishedWeights((tmp_path / "net-00000000.pth").as_uri(), "pdist_mbv2")
    with pytest.raises(WeightsUnavailableError, match=r"the server sent a file of SHA-256 .*, not 00000000"):
        weights.path("lpips")
    assert not list((tmp_path / "torch" / "hub" / "checkpoints").iterdir())


def test_lpips_equals_its_formula(tmp_path, monkeypatch, pair):
    """With random trunk weights behind the published place: downloaded once, loaded, scaled and weighted as the paper says."""
    import lpips
    from torchvision.models import alexnet

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    trunk = alexnet(weights=None).features.eval()
    state = {f"features.{key}": value for key, value in trunk.state_dict().items()}
    weights = publish(tmp_path, {**state, "classifier.1.weight": torch.zeros(2)})
    monkeypatch.setitem(LPIPSNetwork.weights, "alex", weights)
    scorer = make_scorers(["lpips"])["lpips"]
    scorer.update(*pair)
    scores = scorer.per_item()[1]
    cached = tmp_path / "torch" / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    assert scorer.record.protocol["sha256"] == hashlib.sha256(cached.read_bytes()).hexdigest()

    heads = torch.load(f"{lpips.__path__[0]}/weights/v0.1/alex.pth", map_location="cpu")
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    expected = np.zeros(6)
    maps = []
    for part in pair:
        x = (part.float() / 127.5 - 1 - shift.view(3, 1, 1)) / scale.view(3, 1, 1)
        found = []
        for number, layer in enumerate(trunk[:12]):
            x = layer(x)
            if number in (1, 4, 7, 9, 11):
                found.append(x.detach().clone())
        maps.append(found)
    for i, (a, b) in enumerate(zip(*maps, strict=True)):
        a, b = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (a, b))
        head = heads[f"lin{i}.model.1.weight"].view(1, -1, 1, 1)
        expected += ((a - b).square() * head).sum(1).mean((1, 2)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert float(scores[0]) == pytest.approx(0, abs=1e-7)
    assert float(scores[5]) > float(scores[1]) > 0


def test_rfid_uses_the_official_features(tmp_path, monkeypatch, pair):
    """With random weights behind the published place the features are those of torchmetrics' wrapper, by the original resize."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import NoTrainInceptionV3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {})
        random = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    weights = publish(tmp_path, random.state_dict())
    monkeypatch.setattr(InceptionFeatures, "weights", weights)
    networks = {}
    scorer = make_scorers(["rfid"], networks=networks)["rfid"]
    path = str(tmp_path / weights.url.rpartition("/")[2])
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], path, antialias=False)
    torch.testing.assert_close(scorer.features(pair[1][:1]), theirs(pair[1][:1]), atol=1e-5, rtol=1e-5)
    assert scorer.record.protocol["sha256"].startswith(weights.url[-12:-4])


def test_a_batch_is_looked_at_once_for_all_scorers(monkeypatch, toys):
    network = PictureFeatures("mobilenet_v2", 32)
    calls = []
    looked = network._look
    monkeypatch.setattr(network, "_look", lambda pictures: calls.append(len(pictures)) or looked(pictures))
    a = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    b, c = a + 9, a + 90
    first = network.pooled(a).clone()
    for other in (b, a, b, a, c, a, c):
        network(other)
    assert len(calls) == 3
    a += 50
    assert not torch.equal(network.pooled(a), first), "a batch changed in place is computed anew"
    assert isinstance(network.on(torch.device("cpu")), nn.Module)
