"""What Lightning says without need is left out of a training, and nothing else is."""

import logging
import warnings

import pytest

import cplmixvi as cpl
from cplmixvi.model._talk import without_talk

pytestmark = pytest.mark.usefixtures("small_committee")

SPEAKER = logging.getLogger("lightning.pytorch.utilities.rank_zero")


@pytest.fixture
def said(caplog, monkeypatch):
    """Messages of Lightning, which does not pass them on to the root by itself."""
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    with caplog.at_level(logging.INFO, logger=SPEAKER.name):
        yield caplog


def test_a_training_says_its_device_and_no_more(said, make_counts):
    adata = make_counts()
    cpl.CplMixVI.setup_anndata(adata)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cpl.CplMixVI(adata, n_categories=2).train(1, warm_start=False, accelerator="cpu", enable_progress_bar=False)
    assert any(text.startswith("GPU available") for text in said.messages)
    assert not [text for text in said.messages if "TPU" in text or "Tip" in text or "stopped" in text]
    assert not [str(entry.message) for entry in caught if "lightning" in entry.filename]


def test_what_may_matter_is_said_and_everything_afterwards(said):
    with pytest.warns(UserWarning, match="Two halves") as caught, without_talk():
        SPEAKER.info("💡 Tip: try something")
        SPEAKER.info("`Trainer.fit` stopped: `max_steps=2` reached.")
        warnings.warn("Two halves of the data hardly agree", UserWarning, stacklevel=1)
    assert len(caught) == 1
    SPEAKER.info("💡 Tip: try something")
    assert said.messages == ["`Trainer.fit` stopped: `max_steps=2` reached.", "💡 Tip: try something"]
