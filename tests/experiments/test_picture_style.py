"""In which style pictures are written, and that a run is drawn again in another one."""

from threading import Thread

import matplotlib.image
import pytest

from jaxcomp import storage
from jaxcomp.experiments import drawing
from jaxcomp.experiments.manifest import read_manifest
from jaxcomp.experiments.picture_style import PictureStyle, current_style, drawn_in
from jaxcomp.experiments.result import seal
from jaxcomp.experiments.run import Run


def test_a_style_is_that_of_a_block():
    assert current_style() is PictureStyle.light
    seen = []
    with drawn_in("dark"):
        assert current_style() is PictureStyle.dark
        thread = Thread(target=lambda: seen.append(current_style()))
        thread.start()
        thread.join()
        with drawn_in(PictureStyle.light):
            assert current_style() is PictureStyle.light
        assert current_style() is PictureStyle.dark
    assert [current_style(), *seen] == [PictureStyle.light] * 2
    message = "unknown style 'sepia': choose from light, dark"
    with pytest.raises(ValueError, match=message), drawn_in("sepia"):
        pass


class Picture:
    """A result of one picture."""

    def __init__(self, run):
        self.run = run

    @drawing.own_look()
    def save(self):
        figure = drawing.new_figure(2, 1, "a", "b")
        file = self.run.path / "picture.png"
        storage.write_bytes_atomic(file, drawing.encoded(figure, "png"))
        seal(self.run.manifest, self.run.path, [])


def test_a_finished_run_is_drawn_again_in_another_style(tmp_path):
    def brightness():
        return matplotlib.image.imread(tmp_path / "picture.png")[0, 0, 0]

    with Run(tmp_path, {"seed": 0}, noun="trial") as run:
        run.finish(Picture(run))
    assert brightness() == 1
    assert "style" not in read_manifest(tmp_path, "trial")
    for style, is_bright in (("dark", False), ("light", True)):
        with drawn_in(style), Run(tmp_path, {"seed": 0}, noun="trial") as run:
            assert run.finished(lambda _, run=run: Picture(run)) is not None
        assert (brightness() > 0.5) == is_bright
        manifest = read_manifest(tmp_path, "trial", finished=True)
        assert manifest.get("style", "light") == style
        (tmp_path / "picture.png").unlink()
        with drawn_in(style), Run(tmp_path, {"seed": 0}, noun="trial") as run:
            run.finished(lambda _, run=run: Picture(run))
        assert not (tmp_path / "picture.png").exists()  # it has the style already
        Picture(run).save()
