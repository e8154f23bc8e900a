"""Files and columns that jobs publish, and what they mean; the tables of `docs/` come from here.

Columns of masks and of the ledger are declared beside their schemas (`masking.outputs.rows`,
`jobs.masks.ledger`).
"""

EXIT_CODES = {
    0: "the job is done",
    1: "the job failed after it had started; what it published stays valid",
    2: "bad input; nothing was started",
    129: "ended by SIGHUP, as the terminal was closed; the same command resumes",
    130: "ended by Ctrl-C (SIGINT); the same command resumes",
    143: "ended by SIGTERM; the same command resumes",
}
"""Exit codes of all jobs."""

_EVERY_RUN = {
    "config.yaml": "settings of the last start, including defaults; `--config` accepts it",
    "versions.json": "versions of Patchray, Python and packages at the last start",
    "summary.json": "the results, run time and hardware",
}
TRAINING_FILES = {
    **_EVERY_RUN,
    "metrics.csv": "one row per epoch",
    "events/": "the same figures for TensorBoard",
    "curves.png": "learning curves",
    "checkpoints/": "the best and the last two checkpoints, from which the run resumes",
    "export/": "the best weights (safetensors), how to build the model, a model card",
}
"""Files of `jobs.train` and `jobs.finetune`."""
SWEEP_FILES = {
    **_EVERY_RUN,
    "trials/": "a folder per trial with its record and checkpoints, from which the sweep resumes",
    "trials.csv": "one row per trial",
    "trials.parquet": "the same table, with column types",
    "best.yaml": "settings of the best trial, for `jobs.train --config`",
    "report.html": "curves, quality against compute, depth against heads, importance, rungs",
    "*.png": "the pictures of the report",
    "data.json": "number of images and names of classes at the first start",
    "clock.json": "seconds that the sweep has run, over all starts",
    "retrain/": "trainings of the best samples with several seeds (`--retrain-top`)",
}
"""Files of `jobs.tune`."""
MASKING_FILES = {
    **_EVERY_RUN,
    "masks/VIDEO_ID.parquet": "masks of a video, one row per frame and object",
    "commits/": "a marker per video, written last, which says that the video is done",
    "videos.parquet": "the ledger: one row per video",
    "review.csv": "spans of all videos to check, where clicks gain most first",
    "score.json": "J, F and J&F of the masks against true masks (`--score`)",
    "export/": "masks in formats of other tools, and films (`--export`)",
}
"""Files of `jobs.mask`."""

METRICS = {
    "epoch": "number of the epoch, from 1",
    "step": "training steps so far",
    "samples_seen": "training samples so far",
    "lr": "learning rate at the end of the epoch",
    "train_loss": "mean training loss of the epoch",
    "train_accuracy": "share of augmented training samples classified correctly",
    "val_loss": "mean loss on the validation set",
    "val_accuracy": "share of the validation set classified correctly",
    "val_track_accuracy": "share of the validation set's tracks (objects of videos) classified"
    " correctly, by votes over their images; only data of videos have tracks",
    "ema_loss": "`val_loss` of the averaged weights (`--optim.ema-half-life`)",
    "ema_accuracy": "`val_accuracy` of the averaged weights",
    "ema_track_accuracy": "`val_track_accuracy` of the averaged weights",
    "train_iou_first": "segmenters: mean IoU after the first round of prompts; with --clips, on the"
    " second frame of a clip",
    "train_iou_last": "segmenters: mean IoU after the last round of prompts; with --clips, on the"
    " last frame of a clip",
    "train_score_error": "segmenters: mean error of the predicted IoU",
    "val_miou_N": "segmenters: mean IoU after N simulated clicks (1, 3, 5)",
    "val_iou": "segmenters, with --clips: mean IoU through the videos held back, from one click",
    "ema_iou": "`val_iou` of the averaged weights",
    "val_clicks_to_85": "segmenters: mean number of clicks to an IoU of 0.85",
    "ema_miou_N": "`val_miou_N` of the averaged weights",
    "ema_clicks_to_85": "`val_clicks_to_85` of the averaged weights",
    "images_per_s": "training images per second since the start of the run",
    "seconds": "seconds since the start of the run, over all starts",
}
"""Columns of metrics.csv; a run has those of its kind."""
TRIALS = {
    "trial": "number of the trial, from 0",
    "fate": "finished, stopped, diverged, failed, or left (by a limit or a signal; it resumes)",
    "rung": "the rung at which the trial was stopped",
    "reason": "why it was stopped, diverged or failed",
    "SETTING": "a column for each setting that varies, such as `model.depth`",
    "parameters": "number of parameters of the model",
    "metric": "name of the metric that trials are compared by",
    "value": "the metric at the end of a whole training; null if the trial did not finish",
    "last": "the metric after the last epoch",
    "epochs": "epochs that were trained",
    "epochs_whole": "epochs of the whole training, if it is not stopped",
    "samples_seen": "training samples seen",
    "flops": "training FLOPs spent",
    "flops_whole": "training FLOPs of the whole training, if it is not stopped",
    "train_s": "seconds of training",
    "rung_N": "the metric at rung N",
}
"""Columns of trials.csv and trials.parquet."""
PREDICTIONS = {
    "path": "the image file, or the Parquet file that holds the image",
    "row": "row of that Parquet file, from 0; null for an image file",
    "class": "the most probable class",
    "probability": "its probability, 0 to 1",
    "error": "why the image has no class; null if it has one",
    "p_CLASS": "probability of each class, in the order of the head",
}
"""Columns of `predictions/part-*` of images."""
OBJECT_PREDICTIONS = {
    "path": "the video",
    "video_id": "id of the video",
    "frame": "index of the frame, from 0, in presentation order",
    "time_s": "seconds since the first frame; null where they are unknown",
    "object_id": "id of the object",
    "state": "state of the object: prompted or tracked",
    **{name: PREDICTIONS[name] for name in ("class", "probability", "error", "p_CLASS")},
}
"""Columns of `predictions/part-*` of a mask run."""
TRACKS = {
    "video_id": "id of the video",
    "object_id": "id of the object",
    "class": "the class that most of its frames have",
    "probability": "mean probability of that class over the frames, 0 to 1",
    "frames": "number of frames that were classified",
    "agree": "number of frames whose most probable class it is",
    "error": "why the object has no class; null if it has one",
}
"""Columns of `tracks.parquet`."""
