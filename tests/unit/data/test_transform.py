from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as tv

from elastic_export.config.transform import Transform
from elastic_export.data import apply_transform
from elastic_export.errors import UserError

INTERPOLATION = {
    "nearest": tv.InterpolationMode.NEAREST,
    "bilinear": tv.InterpolationMode.BILINEAR,
    "bicubic": tv.InterpolationMode.BICUBIC,
}


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode=mode)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(5, 90),
    height=st.integers(5, 90),
    size=st.integers(1, 40),
    more=st.integers(0, 20),
    interpolation=st.sampled_from(sorted(INTERPOLATION)),
    channels=st.sampled_from([1, 3]),
    mode=st.sampled_from(["RGB", "L", "RGBA", "CMYK"]),
)
def test_equals_torchvision_bit_for_bit(
    width: int, height: int, size: int, more: int, interpolation: str, channels: int, mode: str
) -> None:
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    ours = Transform(
        size=size,
        resize=size + more,
        interpolation=interpolation,  # type: ignore[arg-type]
        channels=channels,  # type: ignore[arg-type]
        mean=mean,
        std=std,
    )
    theirs = tv.Compose(
        [
            tv.Lambda(lambda image: image.convert("RGB" if channels == 3 else "L")),
            tv.Resize(size + more, INTERPOLATION[interpolation], antialias=True),
            tv.CenterCrop(size),
            tv.ToTensor(),
            tv.Normalize(mean, std),
        ]
    )
    image = noise(width, height, mode)
    got = apply_transform(image, ours)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, theirs(image).numpy())


def plain(channels: int = 3, size: int = 4) -> Transform:
    return Transform(
        size=size, resize=None, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels
    )  # type: ignore[arg-type]


def test_palette_with_transparency_gives_its_colours(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 51])
    image.info["transparency"] = b"\xff\x00"
    got = apply_transform(image, plain())
    assert got[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert not recwarn


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bit_grey_is_scaled_not_clipped(mode: str) -> None:
    values = np.array([[0, 256], [32768, 65535]], dtype=np.uint16)
    image = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    assert image.mode == mode
    got = apply_transform(image, plain(size=2))
    np.testing.assert_allclose(got, np.stack([values / 65535] * 3), rtol=1e-6)


def test_an_image_of_another_size_is_refused_where_nothing_resizes() -> None:
    with pytest.raises(UserError, match="5 x 4 pixels") as caught:
        apply_transform(noise(5, 4), plain())
    assert "data.transform.resize" in caught.value.fix


@pytest.mark.parametrize(("old", "new"), [(32, 20), (20, 33), (24, 24), (7, 28)])
def test_the_final_resize_is_torchs(old: int, new: int) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (old, old, 3), np.uint8))
    plain = Transform(size=old, resize=None)
    x = torch.from_numpy(apply_transform(image, plain))
    wanted = torch.nn.functional.interpolate(x[None], size=(new, new), mode="bicubic")[0]
    found = apply_transform(image, plain.model_copy(update={"final_size": new}))
    assert found.shape == (3, new, new)
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)
