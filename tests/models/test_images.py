"""Images of a folder: which, how they are prepared, and what is said of those that will not do."""

import numpy as np
import pytest
import torch
from PIL import Image

from hetconv_cli.errors import ArgumentError
from hetconv_cli.models.images import Preprocessing, list_images, load_images, parse_numbers, preprocessing_of
from hetconv_cli.models.source import resolve

HOW = Preprocessing((0.5,), (0.25,), (4, 6))


def picture(path, height=8, width=12, value=255):
    Image.fromarray(np.full((height, width), value, dtype=np.uint8)).save(path)
    return path


def test_pictures_are_cut_to_size_and_normalised(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "below").mkdir()
    picture(tmp_path / "below" / "b.jpg", 30, 9, value=0)
    batches = load_images(list_images(tmp_path, 10), 3, HOW, 10)
    assert [tuple(batch.shape) for batch in batches] == [(1, 3, 4, 6)] * 2
    assert torch.allclose(batches[0], torch.tensor(2.0))
    assert torch.allclose(batches[1], torch.tensor(-2.0))


def test_tensors_are_taken_as_they_are_and_no_more_than_asked_for(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(2 * 5 * 3 * 3, dtype=np.float32).reshape(2, 5, 3, 3))
    torch.save(torch.ones(5, 3, 3), tmp_path / "b.pt")
    files = list_images(tmp_path, 10)
    assert [tuple(batch.shape) for batch in load_images(files, 5, None, 10)] == [(2, 5, 3, 3), (1, 5, 3, 3)]
    assert [len(batch) for batch in load_images(files, 5, None, 1)] == [1]


def test_of_many_images_the_same_seed_draws_the_same(tmp_path):
    for index in range(20):
        (tmp_path / f"{index}.png").touch()
    drawn = [list_images(tmp_path, 5, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(files) == 5 and files == sorted(files) for files in drawn)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ArgumentError, match="no images in it"):
        list_images(tmp_path, 5)
    with pytest.raises(ArgumentError, match="no such folder"):
        list_images(tmp_path / "none", 5)
    for name in ("a.png", "a.npy", "a.pt"):
        (tmp_path / name).write_bytes(b"not an image")
        with pytest.raises(ArgumentError, match=rf"{name}: cannot be read as a"):
            load_images([tmp_path / name], 3, HOW, 1)
    with pytest.raises(ArgumentError, match=r"c\.png: how a picture becomes"):
        load_images([picture(tmp_path / "c.png")], 3, None, 1)
    with pytest.raises(ArgumentError, match="a picture has 1 or 3 channels, the model takes 5"):
        load_images([tmp_path / "c.png"], 5, HOW, 1)


def test_pickles_are_never_run(tmp_path):
    torch.save({"a": print}, tmp_path / "a.pt")
    np.save(tmp_path / "a.npy", np.array([print], dtype=object), allow_pickle=True)
    for name in ("a.pt", "a.npy"):
        with pytest.raises(ArgumentError, match=rf"{name}: cannot be read"):
            load_images([tmp_path / name], 3, None, 1)


def test_the_weights_say_how_their_images_were_prepared():
    how = preprocessing_of(resolve("resnet18"), "DEFAULT")
    assert how == Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224), 256)
    assert preprocessing_of(resolve("resnet18"), "none") is None


@pytest.mark.parametrize("text", ["", "a", "1,,2", "nan", "1e9"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(ArgumentError, match="--mean: expected"):
        parse_numbers(text, "--mean")
