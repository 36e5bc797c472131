"""Images as AnnData: loaders, affine copies and what they leave of an image, and digits end to end."""

import gzip

import numpy as np
import pytest
import torch
from scipy import sparse

import cplmixvi as cpl
from cplmixvi import augment, datasets
from cplmixvi.datasets import _images, _sprites
from cplmixvi.module import CplMixVAE
from cplmixvi.train._views import Projection, fit_views, no_batch


def idx(values):
    """Bytes of a gzipped IDX file."""
    values = np.asarray(values, dtype=np.uint8)
    return gzip.compress(
        b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, dtype=">i4").tobytes() + values.tobytes()
    )


def bars(n, side=16, seed=0):
    """Bars that stand and bars that lie, each somewhere else: images ``(n, side**2)`` and which of both."""
    rng = np.random.default_rng(seed)
    images, lies = np.zeros((n, side, side), dtype=np.float32), rng.integers(0, 2, n)
    for image, flat in zip(images, lies, strict=True):
        row, column = rng.integers(1, 7, 2)
        image[row : row + (2 if flat else 8), column : column + (8 if flat else 2)] = rng.uniform(0.6, 1)
    return torch.from_numpy(images.reshape(n, -1)), lies


class TestMnist:
    @pytest.fixture
    def files(self, tmp_path, monkeypatch):
        folder = tmp_path / "mnist"
        folder.mkdir()
        monkeypatch.setenv("CPLMIXVI_DATA_DIR", str(tmp_path))
        contents = {"train": ([[[0, 51], [255, 0]], [[0, 0], [0, 102]]], [3, 7]), "test": ([[[255, 0], [0, 0]]], [3])}
        for split, arrays in contents.items():
            for (name, _), values in zip(_images._MNIST[split], arrays, strict=True):
                (folder / name).write_bytes(idx(values))
        return folder

    def test_files_become_grey_levels_with_digits(self, files):
        adata = datasets.mnist()
        assert isinstance(adata.X, sparse.csr_matrix)
        np.testing.assert_allclose(adata.X.toarray(), [[0, 0.2, 1, 0], [0, 0, 0, 0.4], [1, 0, 0, 0]])
        assert adata.obs["digit"].tolist() == ["3", "7", "3"]
        assert adata.obs["split"].tolist() == ["train", "train", "test"]
        assert adata.uns["image_shape"].tolist() == [2, 2]
        assert adata.var_names.tolist() == ["pixel_0_0", "pixel_0_1", "pixel_1_0", "pixel_1_1"]

    def test_files_that_do_not_belong_together_are_refused(self, files):
        (files / "train-labels-idx1-ubyte.gz").write_bytes(idx([1, 2, 3]))
        with pytest.raises(ValueError, match="expected images and as many labels"):
            datasets.mnist()

    @pytest.mark.parametrize(
        ("content", "message"),
        [(gzip.compress(b"text"), "not an IDX"), (idx([1, 2, 3])[:-9], "Compressed|does not")],
        # Compressed bytes hold the time, and the processes that share the tests must know them by the same names.
        ids=["text", "cut off"],
    )
    def test_damaged_files_are_refused(self, tmp_path, content, message):
        path = tmp_path / "file.gz"
        path.write_bytes(content)
        with pytest.raises((ValueError, EOFError), match=message):
            _images.read_idx(path)

    def test_a_header_that_promises_more_is_refused(self, tmp_path):
        path = tmp_path / "file.gz"
        path.write_bytes(gzip.compress(gzip.decompress(idx([1, 2, 3]))[:-1]))
        with pytest.raises(ValueError, match=r"does not hold the \(3,\) values"):
            _images.read_idx(path)

    def test_downloads_are_held_to_their_hash(self, tmp_path, monkeypatch):
        asked = []

        def fail(url, *, known_hash, **kwargs):
            asked.append((url, known_hash))
            raise ValueError("hash of downloaded file does not match")

        monkeypatch.setenv("CPLMIXVI_DATA_DIR", str(tmp_path))
        monkeypatch.setattr("pooch.retrieve", fail)
        with pytest.raises(FileNotFoundError, match="put mnist/train-images-idx3-ubyte.gz into a folder"):
            datasets.mnist()
        assert asked[0][1] == "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"

    def test_published_files(self, data_dir):
        adata = datasets.load("mnist")
        assert adata.shape == (70_000, 784)
        assert (adata.obs["split"] == "test").sum() == 10_000
        # Digits per class of the training set, as published.
        counts = adata.obs.loc[adata.obs["split"] == "train", "digit"].value_counts().sort_index().tolist()
        assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert adata.X.max() == 1


class TestSprites:
    def test_factors_move_sprites_as_they_say(self):
        adata = datasets.dsprites(60, seed=1)
        assert adata.shape == (60, 4096)
        assert set(adata.X.data.tolist()) == {1.0}
        assert adata.uns["rerendered"]
        images = adata.X.toarray().reshape(-1, 64, 64)
        pixel = np.arange(64) + 0.5
        mass = images.sum((1, 2))
        squares = (adata.obs["shape"] == "square").to_numpy()
        # A square is symmetric about its position, and its area grows with the square of its scale.
        x, y = (images.sum(1) @ pixel / mass)[squares], (images.sum(2) @ pixel / mass)[squares]
        np.testing.assert_allclose(x, 16 + 32 * adata.obs["x"][squares], atol=0.3)
        np.testing.assert_allclose(y, 16 + 32 * adata.obs["y"][squares], atol=0.3)
        np.testing.assert_allclose(mass[squares], (19.2 * adata.obs["scale"][squares]) ** 2, rtol=0.06)

    def test_real_frames_are_drawn_nearly_exactly(self, data_dir):
        frames = np.load(data_dir / "dsprites_320_frames.npz")["imgs"]
        pixel = np.arange(64) + 0.5
        different = []
        for frame in frames[::64]:
            mass = frame.sum()
            at = [int(round((along @ pixel / mass - 16) / 32 * 31)) for along in (frame.sum(0), frame.sum(1))]
            # Every factor by exhaustion, the position near the centre of mass.
            grid = np.stack(
                np.meshgrid(range(3), range(6), range(40), *(range(c - 2, c + 3) for c in at), indexing="ij"), -1
            ).reshape(-1, 5)
            grid = grid[((grid[:, 3:] >= 0) & (grid[:, 3:] < 32)).all(1)]
            area = np.array([361, 293, 226])[grid[:, 0]] * (0.5 + 0.1 * grid[:, 1]) ** 2
            some = grid[np.abs(area - mass) < 12]
            different.append(np.abs(_sprites.render_sprites(some) - frame.astype(int)).sum((1, 2)).min())
        assert max(different) <= 4

    def test_the_published_file_is_preferred_and_checked(self, tmp_path, monkeypatch):
        factors = (3, 2, 2, 2, 2)
        monkeypatch.setattr(_images, "FACTORS", factors)
        classes = np.column_stack(np.unravel_index(np.arange(48), factors))
        pictures = np.zeros((48, 64, 64), dtype=np.uint8)
        pictures[:, 0, :2] = classes[:, 3:]
        path = tmp_path / _images.DSPRITES_FILE
        np.savez(path, imgs=pictures, latents_classes=np.column_stack([np.zeros(48, dtype=int), classes]))
        monkeypatch.setenv("CPLMIXVI_DATA_DIR", str(tmp_path))
        adata = datasets.dsprites(20)
        assert not adata.uns["rerendered"]
        np.testing.assert_array_equal(adata.X[:, :2].toarray(), adata.obs[["x", "y"]].to_numpy() * 31)
        np.savez(path, imgs=pictures, latents_classes=np.zeros((48, 6), dtype=int))
        with pytest.raises(ValueError, match="other factors"):
            datasets.dsprites(20, path=path)
        with pytest.raises(FileNotFoundError, match="is not a file"):
            datasets.dsprites(20, path=tmp_path / "nothing.npz")
        with pytest.raises(ValueError, match="there are 48 images"):
            datasets.dsprites(49)


class TestAffine:
    def test_without_any_change_copies_are_the_images(self):
        images, _ = bars(5)
        torch.testing.assert_close(augment.Affine(0, 0, 0, 0)(images), images)

    def test_a_shift_moves_the_centre_of_mass_by_so_much_at_most(self):
        images = torch.zeros(300, 20, 20)
        images[:, 9:11, 9:11] = 1
        copies = augment.Affine(0, 0, 0, 0.2)(images.view(300, -1)).view(-1, 20, 20)
        centre = (
            torch.stack([copies.sum(1), copies.sum(2)], 1) @ (torch.arange(20.0) - 9.5) / copies.sum((1, 2))[:, None]
        )
        assert 3.5 < centre.abs().max() <= 4 + 1e-4
        assert centre.mean(0).abs().max() < 0.5

    def test_a_turn_is_one_on_images_that_are_not_square_too(self):
        images = torch.zeros(200, 21, 31)
        images[:, 10, 5:26] = 1
        copies = augment.Affine(45, 0, 0, 0, shape=(21, 31))(images.view(200, -1)).view(-1, 21, 31)
        across, down = torch.arange(31.0) - 15, torch.arange(21.0) - 10
        xy = torch.einsum("nij,i,j->n", copies, down, across) / copies.sum((1, 2))
        xx = torch.einsum("nij,j->n", copies, across**2) / copies.sum((1, 2))
        yy = torch.einsum("nij,i->n", copies, down**2) / copies.sum((1, 2))
        angle = torch.rad2deg(0.5 * torch.atan2(2 * xy, xx - yy)).abs()
        assert 35 < angle.max() < 47
        # A bar that is turned keeps its length where all of it is still inside.
        inside = angle < 30
        torch.testing.assert_close((xx + yy)[inside], torch.full_like(xx[inside], 36.7), rtol=0.12, atol=0)

    def test_scale_and_shear_have_their_size(self):
        images = torch.zeros(300, 24, 24)
        images[:, 6:18, 6:18] = 1
        larger = augment.Affine(0, 0, 0.5, 0)(images.view(300, -1)).sum(1) / 144
        assert 0.22 < larger.min() < 0.35
        assert 1.9 < larger.max() < 2.3
        slanted = augment.Affine(0, 45, 0, 0)(images.view(300, -1)).view(-1, 24, 24)
        at = torch.arange(24.0) - 11.5
        slope = torch.einsum("nij,i,j->n", slanted, at, at) / torch.einsum("nij,i->n", slanted, at**2)
        assert 0.8 < slope.abs().max() < 1.05

    def test_values_stay_in_their_range_and_draws_differ(self):
        images, _ = bars(50)
        drawn = augment.Affine()(images)
        assert drawn.min() >= 0
        assert drawn.max() <= images.max()
        assert not torch.equal(drawn, augment.Affine()(images))

    def test_the_normal_form_takes_out_what_copies_change(self):
        images = torch.zeros(1, 28, 28)
        images[0, 8:20, 9:12] = 1
        images[0, 17:20, 9:18] = 1
        image = images.view(1, -1)
        affine = augment.Affine(0, 20, 0.2, 0.1)
        copies = affine(image.repeat(200, 1))
        normal = affine.normal_form(copies)
        left = (normal - affine.normal_form(image)).square().sum(1).mean()
        assert left < 0.1 * (copies - image).square().sum(1).mean()

    def test_the_normal_form_leaves_what_copies_do_not_change(self):
        images, _ = bars(20)
        torch.testing.assert_close(augment.Affine(0, 0, 0, 0).normal_form(images), images)
        centred = augment.Affine(0, 0, 0, 0.1).normal_form(images).view(-1, 16, 16)
        torch.testing.assert_close(centred.sum((1, 2)), images.sum(1))
        assert not torch.allclose(centred.view(20, -1), images)

    def test_images_that_may_stand_in_any_way_have_one_normal_form(self):
        images, lies = bars(20)
        affine = augment.Affine(180, 0, 0, 0)
        normal = affine.normal_form(images)
        turned = images.view(20, 16, 16).rot90(1, (1, 2)).reshape(20, -1)
        torch.testing.assert_close(affine.normal_form(turned), normal)
        torch.testing.assert_close(normal.sum(1), images.sum(1))
        assert not torch.allclose(augment.Affine(90, 0, 0, 0).normal_form(turned), normal)

    def test_an_empty_image_stays_empty(self):
        nothing = torch.zeros(2, 49)
        assert torch.equal(augment.Affine().normal_form(nothing), nothing)

    @pytest.mark.parametrize(
        "bounds", [{"rotation": 181}, {"rotation": -1}, {"shear": 61}, {"scale": 1}, {"translation": float("nan")}]
    )
    def test_impossible_bounds_are_refused(self, bounds):
        with pytest.raises(ValueError, match="out of range"):
            augment.Affine(**bounds)

    @pytest.mark.parametrize(
        ("augmenter", "n", "likelihood", "message"),
        [
            (augment.Affine(), 50, "bernoulli", "not the pixels of a square"),
            (augment.Affine(shape=(4, 5)), 25, "bernoulli", r"not the pixels of an image of shape \(4, 5\)"),
            (augment.Affine(), 25, "nb", "needs counts"),
        ],
    )
    def test_what_are_not_images_is_refused(self, augmenter, n, likelihood, message):
        with pytest.raises(ValueError, match=message):
            augmenter.build(n, likelihood, 1e4)

    def test_composition_keeps_the_normal_form(self):
        both = augment.resolve("mask+affine", "bernoulli")
        images, _ = bars(10)
        assert both.on_images
        torch.testing.assert_close(both.neutral(images, {})[0], augment.Affine().normal_form(images))


def test_pixels_are_not_standardised_in_the_views_of_images():
    images, lies = bars(400)
    normal = augment.Affine(shear=0, rotation=0).normal_form(images)
    guide = fit_views(normal, 2, start="images")
    projection = guide.answer.projection
    assert torch.equal(projection.scale, torch.ones(256))
    assert cpl.metrics.ari(lies, guide(normal).argmax(1).numpy()) == 1
    standardised = Projection(normal, no_batch(normal), 5, 0.0)
    assert not torch.equal(standardised.scale, projection.scale)


@pytest.fixture(scope="module")
def fitted_bars():
    from anndata import AnnData

    images, lies = bars(400)
    adata = AnnData(images.numpy(), obs={"lies": lies.astype(str)})
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(
        adata,
        n_categories=2,
        likelihood="bernoulli",
        n_hidden=32,
        augment=augment.Affine(10, 10, 0.1, 0.1, shape=(16, 16)),
    )
    model.train(max_epochs=100, enable_progress_bar=False)
    return adata, model


def test_arms_see_the_normal_form_where_copies_move_far():
    def arm_of(augmenter):
        return CplMixVAE(256, n_categories=2, likelihood="bernoulli", augmenter=augmenter).eval().arms[0]

    images, _ = bars(10)
    turned = images.view(10, 16, 16).rot90(1, (1, 2)).reshape(10, -1)
    far, near = (arm_of(augment.Affine(rotation, 0, 0, 0)).path for rotation in (180, 20))
    for path in (far, near):
        path.axes.normal_()
    torch.testing.assert_close(far.coordinates(images), far.coordinates(turned))
    assert not torch.allclose(near.coordinates(images), near.coordinates(turned))
    assert augment.resolve([augment.Affine(0, 0, 0, 0.3), "mask"], "bernoulli").moves_far


def test_types_of_images_are_found_wherever_they_are(fitted_bars):
    adata, model = fitted_bars
    cpl.tl.annotate(adata, model)
    assert cpl.metrics.accuracy(adata.obs["lies"], adata.obs["cplmixvi"]) > 0.95
    fresh, lies = bars(100, seed=7)
    from anndata import AnnData

    new = AnnData(fresh.numpy())
    assert cpl.metrics.accuracy(lies.astype(str), model.predict(new)) > 0.9
    result = cpl.tl.traverse(adata, model, n_steps=5)
    assert result.by_gene()["effect"].max() > 0
    ax = cpl.pl.image_traversal(adata, path="2")
    picture = np.asarray(ax.images[0].get_array())
    assert picture.shape == (2 * 16, 5 * 16)
    # The second type at the fourth step of the second dimension.
    np.testing.assert_array_equal(picture[16:, 48:64].ravel(), result.expression[1, 1, 3])
    assert [text.get_text() for text in ax.get_yticklabels()] == list(result.categories)
    with pytest.raises(ValueError, match="256 values are not the pixels of an image of shape"):
        cpl.pl.image_traversal(adata, shape=(15, 17))
    with pytest.raises(ValueError, match="path='7'"):
        cpl.pl.image_traversal(adata, path="7")


def test_a_model_of_images_comes_back_with_its_augmenter(fitted_bars, tmp_path):
    adata, model = fitted_bars
    model.save(tmp_path / "model")
    loaded = cpl.CplMixVI.load(tmp_path / "model", adata)
    augmenter = loaded.module.augmenter
    assert isinstance(augmenter, augment.Affine)
    assert (augmenter.rotation, augmenter.shear, augmenter.scale, augmenter.translation) == (10, 10, 0.1, 0.1)
    assert augmenter.shape == [16, 16]
    np.testing.assert_array_equal(loaded.predict(soft=True), model.predict(soft=True))


def test_digits_are_found(data_dir):
    adata = datasets.mnist()
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:5000]].copy()
    cpl.CplMixVI.setup_anndata(adata)
    model = cpl.CplMixVI(adata, n_categories=10, n_state=4, likelihood="bernoulli", augment="affine")
    model.train(max_epochs=12, batch_size=256, enable_progress_bar=False)
    assert cpl.metrics.accuracy(adata.obs["digit"], model.predict()) > 0.8
    assert model.report().n_used == 10
    # Halves of the images agree on digits in their normal form; on a mixture of pixels they do not.
    selection = model.select_n_categories([3, 8], seed=0)
    assert selection.n_categories == 8
    assert selection.table.loc[8, "agreement"] > 0.9
