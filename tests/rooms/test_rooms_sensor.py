import numpy as np
import pytest

from bifusion_hf.rooms.render import RenderedView
from bifusion_hf.rooms.sensor import SENSORS, develop, expose, measure_depth, photograph


FOCAL_LENGTH = 288.935
NEAR, FAR = 1.0, 1.6


def view_of(depth, albedo=0.5, cosine=1.0):
    shape = depth.shape
    labels = np.zeros(shape, np.int32)
    return RenderedView(
        np.full((*shape, 3), 0.3, np.float32),
        depth.astype(np.float32),
        np.full(shape, cosine, np.float32),
        np.full(shape, albedo, np.float32),
        labels,
        labels,
    )


@pytest.fixture
def step():
    """A near square before a far wall."""
    depth = np.full((240, 320), FAR)
    depth[80:160, 120:200] = NEAR
    return depth


def measure(depth, sensor, seed=0, **surface):
    return measure_depth(view_of(depth, **surface), FOCAL_LENGTH, np.random.default_rng(seed), sensor)


@pytest.mark.parametrize("sensor", SENSORS)
def test_sensors_measure_about_the_depth_there_is(step, sensor):
    measured = measure(step, sensor)
    valid = measured > 0
    assert measured.dtype == np.float32 and measured.shape == step.shape
    inside = np.zeros_like(valid)
    inside[95:145, 135:185] = True
    assert valid[inside].mean() > 0.8
    assert np.median(np.abs(measured - step)[valid]) < 0.02
    assert abs(np.median(measured[inside & valid]) - NEAR) < 0.012


def test_dense_is_exact(step):
    np.testing.assert_array_equal(measure(step, "dense"), step.astype(np.float32))


def test_time_of_flight_has_points_between_near_and_far_at_edges_alone(step):
    measured = measure(step, "tof")
    between = (measured > NEAR + 0.1) & (measured < FAR - 0.1)
    assert between.sum() > 60
    rows, columns = np.nonzero(between)
    edge = np.minimum.reduce([abs(rows - 79.5), abs(rows - 159.5), abs(columns - 119.5), abs(columns - 199.5)])
    assert edge.max() <= 1.5
    dark = measure(step, "tof", albedo=0.0001)
    assert (dark == 0).mean() > (measured == 0).mean() + 0.3


def test_time_of_flight_is_noisier_on_dark_surfaces():
    depth = np.full((240, 320), 1.5)
    noise = {}
    for albedo in (0.02, 0.8):
        measured = measure(depth, "tof", albedo=albedo)
        noise[albedo] = np.std(measured[measured > 0])
    assert noise[0.02] > 1.5 * noise[0.8]


def test_stereo_fattens_what_is_near_and_is_blind_at_its_left_border(step):
    sizes = []
    for seed in range(6):
        measured = measure(step, "stereo", seed)
        sizes.append(((measured > NEAR - 0.1) & (measured < NEAR + 0.1)).sum() / 80**2)
        # Beyond the other camera's view: f b / z columns, b at least 3 cm.
        assert (measured[:70, :5] == 0).all()
        assert (measured[:70, 60:110] > 0).mean() > 0.8
    assert np.mean(sizes) > 1.02


def test_lidar_turns_edges_into_slopes(step):
    measured = measure(step, "lidar")
    between = (measured > NEAR + 0.1) & (measured < FAR - 0.1)
    assert between.sum() > 4 * 80  # at least one pixel of slope on each side
    assert (measured > 0).all()
    small = np.full((240, 320), FAR)
    small[119:121, 159:161] = NEAR
    assert measure(small, "lidar").min() > NEAR + 0.2
    assert not measure(np.full((240, 320), 7.0), "lidar").any()


def test_structured_light_loses_the_shadow_left_of_what_is_near(step):
    measured = measure(step, "kinect1")
    # f b (1/1.0 - 1/1.6) = 8 pixels.
    assert (measured[100:140, 113:119] == 0).mean() > 0.9 > 0.3 > (measured[100:140, 60:110] == 0).mean()


def test_nothing_is_measured_where_there_is_nothing(step):
    step[:20] = 0
    for sensor in SENSORS:
        assert not measure(step, sensor)[:18].any()


def test_mixed_is_one_of_the_sensors_by_the_generator(step):
    exact = step.astype(np.float32)
    results = [measure(step, "mixed", seed) for seed in range(30)]
    dense = sum(np.array_equal(result, exact) for result in results)
    assert 1 <= dense < 15
    np.testing.assert_array_equal(results[3], measure(step, "mixed", 3))


LUMA = np.array([0.299, 0.587, 0.114])


def lit(radiance):
    view = view_of(np.ones(radiance.shape[:2]))
    view.radiance = radiance.astype(np.float32)
    return view


@pytest.fixture(scope="module")
def surfaces():
    """Patches of all brightnesses, and one hundred times as bright as the mean."""
    radiance = np.repeat(np.random.default_rng(0).uniform(0.02, 0.8, (12, 16, 3)), 10, axis=0).repeat(10, axis=1)
    radiance[:10, :10] = 40
    return radiance


def test_automatic_exposure_meets_its_mean_whatever_the_light(surfaces):
    for luma in (70, 110, 150):
        means = [
            np.mean(expose(lit(light * surfaces), np.random.default_rng(1), luma=luma) @ LUMA)
            for light in (0.02, 1.0, 50.0)
        ]
        np.testing.assert_allclose(means, means[0], atol=0.5)
        # Vignetting, blur and noise come after the exposure.
        assert means[0] == pytest.approx(luma, rel=0.12)


def test_automatic_exposure_holds_back_before_much_is_white():
    """A quarter is fifty times as bright: to meet the mean it would have to clip."""
    radiance = np.full((120, 160, 3), 0.02)
    radiance[:60, :80] = 1.0
    by_median = expose(lit(radiance), np.random.default_rng(0))
    automatic = expose(lit(radiance), np.random.default_rng(0), luma=100.0)
    bright = [picture[5:50, 5:70].mean() for picture in (by_median, automatic)]
    assert bright[0] > 252 and 235 < bright[1] < 250, bright
    assert automatic[70:, :70].mean() > 20


def test_photographs_are_neither_too_bright_nor_too_dark_nor_much_tinted(surfaces):
    pictures = [photograph(lit(surfaces), np.random.default_rng(seed)) for seed in range(40)]
    luma = np.array([np.mean(picture @ LUMA) for picture in pictures])
    assert luma.min() > 40 and luma.max() < 200 and ((luma > 62) & (luma < 162)).mean() > 0.85
    assert luma.std() > 15
    means = np.array([picture.mean(axis=(0, 1)) for picture in pictures])
    cast = np.ptp(means, axis=1) / means.mean(axis=1)
    assert np.median(cast) < 0.15 and np.quantile(cast, 0.95) < 0.4


def test_developing_changes_colour_and_contrast_but_not_the_scene():
    y, x = np.mgrid[0:120, 0:160]
    image = np.stack([x, y, 128 + 0 * x], -1).astype(np.uint8)
    pictures = [develop(image, np.random.default_rng(seed)) for seed in range(12)]
    for picture in pictures:
        assert picture.shape == image.shape and picture.dtype == np.uint8
        assert np.corrcoef(picture[..., 0].ravel(), x.ravel())[0, 1] > 0.8
    means = np.array([picture.mean(axis=(0, 1)) for picture in pictures])
    assert means.std(axis=0).min() > 4
    np.testing.assert_array_equal(pictures[0], develop(image, np.random.default_rng(0)))
