"""Which setting an unknown name may mean: a setting of that name in another group, or what other trainers call it."""

import difflib
from collections.abc import Iterable

from deit_jax.errors import nearest

# as in timm, the released DeiT code, big_vision, transformers, Keras and Lightning
OTHER_NAMES = {
    "lr": "optimizer.lr",
    "learning_rate": "optimizer.lr",
    "base_lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "opt": "optimizer.name",
    "sched": "optimizer.schedule",
    "lr_schedule": "optimizer.schedule",
    "lr_scheduler_type": "optimizer.schedule",
    "warmup": "optimizer.warmup_epochs",
    "clip_grad": "optimizer.clip_norm",
    "grad_clip": "optimizer.clip_norm",
    "grad_clip_norm": "optimizer.clip_norm",
    "gradient_clip_val": "optimizer.clip_norm",
    "max_grad_norm": "optimizer.clip_norm",
    "ema": "optimizer.ema_decay",
    "model_ema": "optimizer.ema_decay",
    "model_ema_decay": "optimizer.ema_decay",
    "bs": "batch_size",
    "global_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "num_train_epochs": "epochs",
    "total_epochs": "epochs",
    "max_steps": "steps",
    "num_steps": "steps",
    "total_steps": "steps",
    "accum_steps": "accumulate",
    "grad_accum_steps": "accumulate",
    "gradient_accumulation_steps": "accumulate",
    "accumulate_grad_batches": "accumulate",
    "arch": "model.name",
    "model_name": "model.name",
    "nb_classes": "model.num_classes",
    "image_size": "model.img_size",
    "input_size": "model.img_size",
    "resolution": "model.img_size",
    "drop": "model.drop_rate",
    "dropout": "model.drop_rate",
    "drop_path": "model.drop_path_rate",
    "stochastic_depth": "model.drop_path_rate",
    "amp": "model.dtype",
    "bf16": "model.dtype",
    "precision": "model.dtype",
    "smoothing": "augment.label_smoothing",
    "label_smoothing_factor": "augment.label_smoothing",
    "mixup_alpha": "augment.mixup",
    "cutmix_alpha": "augment.cutmix",
    "mixup_prob": "augment.mix_prob",
    "mixup_switch_prob": "augment.mix_switch",
    "hflip": "augment.flip",
    "reprob": "augment.erasing",
    "random_erasing": "augment.erasing",
    "aa": "augment.policy",
    "auto_augment": "augment.policy",
    "randaugment": "augment.policy",
    "repeated_aug": "augment.repeats",
    "distillation_type": "distill.kind",
    "distillation_alpha": "distill.alpha",
    "distillation_tau": "distill.tau",
    "temperature": "distill.tau",
    "teacher_model": "teacher.name",
    "teacher_path": "teacher.init",
    "dataset": "data.name",
    "dataset_name": "data.name",
    "data_dir": "data.root",
    "data_path": "data.root",
    "num_workers": "data.workers",
    "dataloader_num_workers": "data.workers",
    "crop_pct": "data.crop",
    "pretrained": "init",
    "init_checkpoint": "init",
    "gradient_checkpointing": "model.remat",
}
OTHER_RUNS = ("teacher", "label", "finetune")  # groups of settings for other work than the training itself


def suggestion(path: str, settings: Iterable[str]) -> str:
    """ " (did you mean X?)" for an unknown setting, or "" where none is meant.

    Args:
        path: "a.b", as it was given.
        settings: the paths of all.
    """
    known = list(settings)
    group, _, name = path.rpartition(".")
    meant = [setting for setting in known if setting.rpartition(".")[2] == name]
    misspelled = difflib.get_close_matches(path, meant, n=1, cutoff=0.8)  # the group
    if misspelled:
        return f" (did you mean {misspelled[0]}?)"
    if name in OTHER_NAMES:
        other = OTHER_NAMES[name]
        here = f"{group}.{other.rpartition('.')[2]}"  # of the group that was named, where it has one
        meant = [here if here in known else other]
    if not meant:
        return nearest(path, known)
    of_the_run = [setting for setting in meant if setting.partition(".")[0] not in OTHER_RUNS]
    return f" (did you mean {' or '.join(of_the_run or meant)}?)"
