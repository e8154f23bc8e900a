"""The sessions of `transformers`, object by object: what our loop is held against."""

import sys
from dataclasses import dataclass, replace

import torch

SESSIONS = {
    "sam2_video": "Sam2VideoInferenceSession",
    "edgetam_video": "EdgeTamVideoInferenceSession",
    "sam3_tracker_video": "Sam3TrackerVideoInferenceSession",
}


@dataclass
class Shown:
    """What a session says of an object on a frame."""

    logits: torch.Tensor
    visible: float
    score: float


class Reference:
    """One object in a session of its own."""

    def __init__(self, network, images):
        self.model, self.kind = network.model, network.kind
        pixels = (images - network.mean) / network.std
        module = sys.modules[type(self.model).__module__]
        self.session = getattr(module, SESSIONS[self.kind])(
            video=pixels, video_height=network.side, video_width=network.side,
            max_vision_features_cache_size=len(images), dtype=torch.float32,
        )  # fmt: skip
        self.session.obj_id_to_idx(1)
        self._scores = []

    def click(self, frame, points, labels):
        """Give points as a session takes them."""
        inputs = {"point_coords": points[None, None], "point_labels": labels[None, None]}
        self.session.add_point_inputs(0, frame, inputs)
        self.session.obj_with_new_inputs.append(1)
        return self._recorded(lambda: self.model(self.session, frame_idx=frame))

    def show(self, frame, mask):
        """Give the mask (side, side) of a frame as a session takes it."""
        self.session.add_mask_inputs(0, frame, mask[None, None])
        self.session.obj_with_new_inputs.append(1)
        found = self._recorded(lambda: self.model(self.session, frame_idx=frame))
        return replace(found, score=1.0)  # what was recorded is of the pointer's masks

    def press(self, frame, points, labels, start=None, first=True):
        """Give points with the logits of the round before, as Meta's predictor does; the frame is
        remembered as one with a prompt."""
        more = {"run_mem_encoder": True} if self.kind == "edgetam_video" else {}
        inputs = {"point_coords": points[None, None], "point_labels": labels[None, None]}

        def call():
            return self.model._run_single_frame_inference(
                inference_session=self.session, frame_idx=frame, obj_idx=0, batch_size=1,
                is_init_cond_frame=first, point_inputs=inputs, mask_inputs=None, reverse=False,
                prev_sam_mask_logits=None if start is None else start.clamp(-32, 32)[None, None],
                **more,
            )  # fmt: skip

        # A round is not remembered by the next one.
        self.session.output_dict_per_obj[0]["cond_frame_outputs"].pop(frame, None)
        with torch.inference_mode():
            found = self._recorded(call)
            self.session.store_output(0, frame, output_value=self._last)
            if self.kind != "edgetam_video":
                last = self._last
                self.model._batch_encode_memories(
                    self.session, frame, [0], [last["high_res_masks"]],
                    [last["object_score_logits"]], [True],
                )  # fmt: skip
        self.session.output_dict_per_obj[0]["non_cond_frame_outputs"].pop(frame, None)
        return found

    def track(self, frame, reverse=False):
        """Track the object on a frame."""
        return self._recorded(lambda: self.model(self.session, frame_idx=frame, reverse=reverse))

    def _recorded(self, call):
        """Return what a call says, with the predicted IoU, which sessions leave out."""
        plain, scores = self.model._single_frame_forward, []

        def recording(*args, **more):
            found = plain(*args, **more)
            scores.append(float(found.iou_scores.max()))
            return found

        self.model._single_frame_forward = recording
        try:
            self._last = call()
        finally:
            del self.model._single_frame_forward
        last = self._last if isinstance(self._last, dict) else vars(self._last)
        # A frame with a prompt is not computed again: then there is no score.
        score = scores[-1] if scores else float("nan")
        return Shown(last["pred_masks"].squeeze(), float(last["object_score_logits"]), score)
