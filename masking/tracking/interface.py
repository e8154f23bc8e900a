"""What the passes over a video need of that which tracks objects: `Tracking`.

`masking.tracking.by_image` implements it for segmenters of images, with optical flow and a memory
of this project. A pass does not know what tracks its objects.

A tracker is a value: everything that is known of all objects after a frame. A scene is a frame in
the form that a step needs.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from masking.images.arrays import Bools, Pixels
from masking.manifest.prompt import FramePrompt
from masking.segmenter.sam import Embeddings, Segmenter
from masking.tracking.query import Answer
from masking.tracking.state import TrackedMasks

Tracker = TypeVar("Tracker")
Scene = TypeVar("Scene")


class Tracking(Protocol[Tracker, Scene]):
    """Tracks objects from frame to frame; it keeps nothing of the frames that it has seen."""

    segmenter: Segmenter
    """Encodes frames, and enlarges low-resolution logits."""

    @property
    def kind(self) -> str:
        """Name of the kind of network: a tracker can be resumed by the same kind only."""

    def prepare(self, images: Mapping[int, Pixels]) -> Any:
        """Prepare frames for `scenes` on the host; any thread may do it.

        Args:
            images: frames of the same size (H, W, 3) uint8 RGB, by index; at least one.
        """

    def scenes(self, prepared: Any) -> Mapping[int, Scene]:
        """Encode frames that `prepare` has prepared; returns their scenes by index."""

    def begin(self, objects: int, backward: bool = False) -> Tracker:
        """Return the tracker before the first frame of a pass.

        Args:
            objects: number of objects.
            backward: whether the pass goes from later frames to earlier ones.
        """

    def restart(self, tracker: Tracker, backward: bool = False) -> Tracker:
        """Return the tracker before the first frame of another pass over the same video. It
        remembers the frames with prompts, and nothing else."""

    def knows_prompts(self, tracker: Tracker) -> bool:
        """Return whether a tracker remembers any frame with a prompt."""

    def resume(self, tracker: Tracker) -> Tracker:
        """Return a tracker that was loaded from a file, on the device of the segmenter."""

    def advance(
        self,
        tracker: Tracker,
        scene: Scene,
        prompts: Mapping[int, FramePrompt],
        given: Mapping[int, Answer],
    ) -> tuple[Tracker, TrackedMasks]:
        """Track all objects on the next frame.

        Args:
            tracker: the tracker after the frame before.
            scene: the frame.
            prompts: what a person says on this frame, by object, 0 to K - 1.
            given: answers to some of the prompts, from a pass before; they are taken as they are.

        Returns:
            The tracker after this frame, and the masks on it. The arguments are not changed.
        """

    def answer(
        self,
        embeddings: Embeddings,
        prompt: FramePrompt,
        before: Bools | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Answer | None:
        """Return the mask of one object's prompt on a single frame.

        Args:
            embeddings: the frame.
            prompt: the prompt.
            before: (H, W) bool, the mask that the prompt corrects; None: it corrects none.
            check: called before each round of the decoder, which does not begin if it raises.

        Returns:
            The answer; None: the prompt does not say where the object is, and there is no mask.
        """
