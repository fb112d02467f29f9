"""Every setting of diffusers' DreamBooth scripts, of kohya's trainers and of accelerate's launcher, and its fate here.

One row a setting: the name and default of the trainer's own parser, and either the key of the sweep file that it
becomes, or why it has none.

    key      it becomes this key; by arithmetic where the units differ
    absent   what is trained is the same without it
    differs  pictures come out a little otherwise: a deliberate difference, remarked and not refused
    refused  it changes what is trained, and there is nothing here that does so: a run that sets it is refused
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Fate = Literal["key", "absent", "differs", "refused"]
Plain = str | int | float | bool | None


@dataclass(frozen=True)
class Flag:
    """A setting of another trainer and its fate here."""

    name: str
    fate: Fate
    text: str
    """The key, or the reason in a few words."""
    kind: type = str
    """What the trainer's parser makes of it; `bool` is a switch."""
    default: Plain = None
    scripts: frozenset[str] = frozenset()
    """Those that know it."""
    many: bool = False
    """Takes several values."""

    @property
    def key(self) -> str | None:
        """Dotted, as in the sweep file: `methods.*.seed` is of both methods, `methods.lora.rank` of one."""
        return self.text if self.fate == "key" else None


_Row = tuple[str, Fate, str, type, Plain]
_Rows = Iterable[_Row]


def _table(rows: _Rows, *scripts: str, many: Iterable[str] = ()) -> list[Flag]:
    several = frozenset(many)
    known_to = frozenset(scripts)
    return [
        Flag(name, fate, text, kind, default, known_to, name in several) for name, fate, text, kind, default in rows
    ]


# --- diffusers --------------------------------------------------------------------------------------------------------

FULL, LORA, ADVANCED = "train_dreambooth", "train_dreambooth_lora", "train_dreambooth_lora_sd15_advanced"
DIFFUSERS_SCRIPTS: Mapping[str, str] = {FULL: "dreambooth", LORA: "lora", ADVANCED: "lora"}
"""Script -> our method."""

_IN_ALL: _Rows = (
    ("pretrained_model_name_or_path", "key", "base_model", str, None),
    ("revision", "key", "revision", str, None),
    ("variant", "key", "variant", str, None),
    ("instance_data_dir", "key", "subject.photos", str, None),
    ("class_data_dir", "key", "subject.class_images", str, None),
    ("instance_prompt", "key", "subject.instance_prompt", str, None),
    ("class_prompt", "key", "subject.class_prompt", str, None),
    ("with_prior_preservation", "key", "methods.*.with_prior_preservation", bool, False),
    ("prior_loss_weight", "key", "methods.*.prior_loss_weight", float, 1.0),
    ("num_class_images", "key", "methods.*.num_class_images", int, 100),
    ("seed", "key", "methods.*.seed", int, None),
    ("resolution", "key", "subject.resolution", int, 512),
    ("center_crop", "key", "subject.crop", bool, False),
    ("train_text_encoder", "key", "methods.*.train_text_encoder", bool, False),
    ("train_batch_size", "key", "methods.*.train_batch_size", int, 4),
    ("sample_batch_size", "absent", "class pictures drawn at once: memory alone", int, 4),
    ("num_train_epochs", "key", "methods.*.max_train_steps", int, 1),
    ("max_train_steps", "key", "methods.*.max_train_steps", int, None),
    ("checkpointing_steps", "key", "evaluation.at_steps", int, 500),
    ("checkpoints_total_limit", "absent", "state is kept where a run can go on from it", int, None),
    ("resume_from_checkpoint", "absent", "the sweep's trial is that run from its first step", str, None),
    ("gradient_accumulation_steps", "key", "methods.*.gradient_accumulation_steps", int, 1),
    ("gradient_checkpointing", "key", "methods.*.gradient_checkpointing", bool, False),
    ("scale_lr", "key", "methods.*.learning_rate", bool, False),
    ("lr_scheduler", "key", "methods.*.lr_scheduler", str, "constant"),
    ("lr_warmup_steps", "key", "methods.*.lr_warmup_steps", int, 500),
    ("lr_num_cycles", "key", "methods.*.lr_num_cycles", int, 1),
    ("lr_power", "key", "methods.*.lr_power", float, 1.0),
    ("use_8bit_adam", "key", "methods.*.use_8bit_adam", bool, False),
    ("dataloader_num_workers", "absent", "latents are cached, nothing is loaded between steps", int, 0),
    ("adam_beta1", "key", "methods.*.adam_beta1", float, 0.9),
    ("adam_beta2", "key", "methods.*.adam_beta2", float, 0.999),
    ("adam_epsilon", "key", "methods.*.adam_epsilon", float, 1e-8),
    ("max_grad_norm", "key", "methods.*.max_grad_norm", float, 1.0),
    ("output_dir", "key", "name", str, None),
    ("push_to_hub", "absent", "`dreamsweep export` writes the files to upload", bool, False),
    ("hub_token", "absent", "nothing is uploaded", str, None),
    ("hub_model_id", "absent", "nothing is uploaded", str, None),
    ("logging_dir", "absent", "the run folder keeps its own records", str, "logs"),
    ("report_to", "absent", "the run folder, the report and Ray's dashboard show it", str, "tensorboard"),
    ("allow_tf32", "key", "methods.*.allow_tf32", bool, False),
    ("validation_prompt", "key", "evaluation.prompts", str, None),
    ("num_validation_images", "key", "evaluation.images_per_prompt", int, 4),
    ("mixed_precision", "key", "methods.*.mixed_precision", str, None),
    ("prior_generation_precision", "differs", "class pictures are drawn in fp16 on a GPU", str, None),
    ("local_rank", "absent", "Ray places the workers", int, -1),
    ("enable_xformers_memory_efficient_attention", "absent", "attention is PyTorch's own", bool, False),
)
_IN_THE_FIRST_TWO: _Rows = (
    ("tokenizer_name", "refused", "the tokenizer is the base model's", str, None),
    ("adam_weight_decay", "key", "methods.*.adam_weight_decay", float, 1e-2),
    ("pre_compute_text_embeddings", "absent", "a frozen text encoder reads a prompt once in any case", bool, False),
    ("tokenizer_max_length", "refused", "the text encoder reads 77 tokens", int, None),
    (
        "text_encoder_use_attention_mask",
        "refused",
        "the text encoder is asked as Stable Diffusion asks it",
        bool,
        False,
    ),
    ("validation_images", "absent", "for DeepFloyd IF's upscaler", str, None),
    ("class_labels_conditioning", "refused", "for DeepFloyd IF's upscaler", str, None),
)
_IN_FULL: _Rows = (
    ("learning_rate", "key", "methods.*.learning_rate", float, 5e-6),
    ("validation_steps", "absent", "checkpoints are scored at evaluation.at_steps", int, 100),
    ("set_grads_to_none", "absent", "gradients are always freed", bool, False),
    ("offset_noise", "key", "methods.*.noise_offset", bool, False),
    ("snr_gamma", "key", "methods.*.snr_gamma", float, None),
    ("skip_save_text_encoder", "absent", "what is saved is not what is trained", bool, False),
    ("validation_scheduler", "absent", "pictures are made by evaluation.scheduler", str, "DPMSolverMultistepScheduler"),
)
_IN_LORA: _Rows = (("learning_rate", "key", "methods.*.learning_rate", float, 5e-4),)
_IN_BOTH_LORAS: _Rows = (
    ("validation_epochs", "absent", "checkpoints are scored at evaluation.at_steps", int, 50),
    ("rank", "key", "methods.lora.rank", int, 4),
    ("lora_dropout", "key", "methods.lora.lora_dropout", float, 0.0),
    ("image_interpolation_mode", "differs", "pictures are resized by lanczos", str, "lanczos"),
)
_TEXTUAL_INVERSION = "new tokens are not trained (pivotal tuning)"
_IN_ADVANCED: _Rows = (
    ("learning_rate", "key", "methods.*.learning_rate", float, 1e-4),
    ("adam_weight_decay", "key", "methods.*.adam_weight_decay", float, 1e-4),
    ("adam_weight_decay_text_encoder", "key", "methods.*.adam_weight_decay", float, None),
    ("pretrained_vae_model_name_or_path", "refused", "the VAE is the base model's", str, None),
    ("dataset_name", "refused", "photos are a folder, not a data set of the hub", str, None),
    ("dataset_config_name", "refused", "photos are a folder, not a data set of the hub", str, None),
    ("cache_dir", "absent", "the hub's own cache is used", str, None),
    ("image_column", "absent", "photos are a folder, not a data set of the hub", str, "image"),
    ("caption_column", "refused", "captions are .txt files beside the photos", str, None),
    ("repeats", "key", "methods.*.max_train_steps", int, 1),
    ("token_abstraction", "absent", "only counts with train_text_encoder_ti", str, "TOK"),
    ("num_new_tokens_per_abstraction", "refused", _TEXTUAL_INVERSION, int, 2),
    ("text_encoder_lr", "key", "methods.*.text_encoder_learning_rate", float, 5e-6),
    ("snr_gamma", "key", "methods.*.snr_gamma", float, None),
    ("train_text_encoder_ti", "refused", _TEXTUAL_INVERSION, bool, False),
    ("train_text_encoder_ti_frac", "absent", "only counts with train_text_encoder_ti", float, 0.5),
    ("train_text_encoder_frac", "key", "methods.*.stop_text_encoder_training", float, 1.0),
    ("optimizer", "key", "methods.*.optimizer", str, "adamW"),
    ("prodigy_beta3", "refused", "Prodigy's third beta is the root of the second", float, None),
    ("prodigy_decouple", "absent", "Prodigy decays weights as AdamW does", str, True),
    ("prodigy_use_bias_correction", "absent", "Prodigy corrects its bias", str, True),
    ("prodigy_safeguard_warmup", "absent", "Prodigy guards its warm-up", str, True),
    ("noise_offset", "key", "methods.*.noise_offset", float, 0.0),
    ("use_dora", "key", "methods.lora.use_dora", bool, False),
    ("cache_latents", "absent", "latents are always cached, as mean and standard deviation", bool, False),
)
DIFFUSERS: tuple[Flag, ...] = (
    *_table(_IN_ALL, FULL, LORA, ADVANCED),
    *_table(_IN_THE_FIRST_TWO, FULL, LORA, many=("validation_images",)),
    *_table(_IN_FULL, FULL),
    *_table(_IN_LORA, LORA),
    *_table(_IN_BOTH_LORAS, LORA, ADVANCED),
    *_table(_IN_ADVANCED, ADVANCED),
)
OUTPUT_DIRS: Mapping[str, str] = {
    FULL: "dreambooth-model",
    LORA: "lora-dreambooth-model",
    ADVANCED: "lora-dreambooth-model",
}
"""Where a script writes that is not told."""

# --- accelerate -------------------------------------------------------------------------------------------------------

_PLACES = "Ray places the workers"
_TRAINS_OTHERWISE = "weights are not split or rounded so"
_LAUNCHER: _Rows = (
    ("mixed_precision", "key", "methods.*.mixed_precision", str, None),
    ("num_processes", "key", "methods.*.train_batch_size", int, None),
    ("nproc_per_node", "key", "methods.*.train_batch_size", int, None),
    ("config_file", "refused", "it is not read: say --mixed_precision and --num_processes instead", str, None),
    ("num_machines", "absent", _PLACES, int, 1),
    ("nnodes", "absent", _PLACES, int, 1),
    ("machine_rank", "absent", _PLACES, int, None),
    ("main_process_ip", "absent", _PLACES, str, None),
    ("main_process_port", "absent", _PLACES, int, None),
    ("master_port", "absent", _PLACES, int, None),
    ("rdzv_backend", "absent", _PLACES, str, None),
    ("same_network", "absent", _PLACES, bool, False),
    ("multi_gpu", "absent", _PLACES, bool, False),
    ("gpu_ids", "absent", _PLACES, str, None),
    ("cpu", "absent", "resources.gpus_per_trial says where", bool, False),
    ("num_cpu_threads_per_process", "absent", "resources.cpus_per_trial says how many", int, None),
    ("quiet", "absent", "what is printed", bool, False),
    ("debug", "absent", "what is printed", bool, False),
    ("module", "absent", "how the script is named", bool, False),
    ("no_python", "absent", "how the script is named", bool, False),
    ("dynamo_backend", "absent", "`compile` is a key of its own", str, "no"),
    ("dynamo_mode", "absent", "`compile` is a key of its own", str, None),
    ("downcast_bf16", "absent", "for TPUs", str, None),
    ("use_deepspeed", "refused", _TRAINS_OTHERWISE, bool, False),
    ("use_fsdp", "refused", _TRAINS_OTHERWISE, bool, False),
    ("use_megatron_lm", "refused", _TRAINS_OTHERWISE, bool, False),
    ("tpu", "refused", "GPUs and CPUs train", bool, False),
)
LAUNCHER: tuple[Flag, ...] = tuple(_table(_LAUNCHER, "launch"))
LAUNCHER_SHORT: Mapping[str, str] = {"-m": "module"}

# --- kohya ------------------------------------------------------------------------------------------------------------

NETWORK, DB, DATASET = "train_network", "train_db", "dataset"
KOHYA_SCRIPTS: Mapping[str, str] = {NETWORK: "lora", DB: "dreambooth"}
"""Script -> our method."""

_HUB = "`dreamsweep export` writes the files to upload"
_SAVING = "what is saved, and when, is not what is trained"
_LOGS = "the run folder keeps its own records"
_LOOKS = "pictures are made and scored by `evaluation`"
_LOADING = "latents are cached, nothing is loaded between steps"
_MEMORY = "memory and speed alone"
_NOISE = "noise is as Stable Diffusion 1.5 was trained with it, but for noise_offset"
_LOSS = "the loss is the mean square"
_FLOW = "for models that match flows"
_OPTIMIZERS = "the optimizers are AdamW, its 8-bit form, Prodigy and Adafactor"
_SQUARES = "photos are cut to squares"
_HALVES = "weights that train are float32"
_VALIDATION = "photos that no trial learns from are subject.held_out_photos, judged by likeness"
_WORDS = "captions are read as they are"
_HISTORY = "the sweep's trial is that run from its first step"

_KOHYA_IN_BOTH: _Rows = (
    ("v2", "refused", "the base model is Stable Diffusion 1.5", bool, False),
    ("v_parameterization", "refused", "what is predicted is read from the base model's scheduler", bool, False),
    ("pretrained_model_name_or_path", "key", "base_model", str, None),
    ("tokenizer_cache_dir", "absent", "the hub's own cache is used", str, None),
    ("optimizer_type", "key", "methods.*.optimizer", str, ""),
    ("use_8bit_adam", "key", "methods.*.use_8bit_adam", bool, False),
    ("use_lion_optimizer", "refused", _OPTIMIZERS, bool, False),
    ("learning_rate", "key", "methods.*.learning_rate", float, 2e-6),
    ("max_grad_norm", "key", "methods.*.max_grad_norm", float, 1.0),
    ("optimizer_args", "key", "methods.*.adam_weight_decay", str, None),
    ("lr_scheduler_type", "refused", "schedules are those of diffusers", str, ""),
    ("lr_scheduler_args", "refused", "schedules are those of diffusers", str, None),
    ("lr_scheduler", "key", "methods.*.lr_scheduler", str, "constant"),
    ("lr_warmup_steps", "key", "methods.*.lr_warmup_steps", float, 0),
    ("lr_decay_steps", "refused", "schedules are those of diffusers", float, 0),
    ("lr_scheduler_num_cycles", "key", "methods.*.lr_num_cycles", int, 1),
    ("lr_scheduler_power", "key", "methods.*.lr_power", float, 1.0),
    ("lr_scheduler_timescale", "absent", "only counts with schedules that are refused", int, None),
    ("lr_scheduler_min_lr_ratio", "absent", "only counts with schedules that are refused", float, None),
    ("fused_backward_pass", "refused", "gradients are clipped together, before any weight moves", bool, False),
    ("output_dir", "absent", "the run folder", str, None),
    ("output_name", "key", "name", str, None),
    ("huggingface_repo_id", "absent", _HUB, str, None),
    ("huggingface_repo_type", "absent", _HUB, str, None),
    ("huggingface_path_in_repo", "absent", _HUB, str, None),
    ("huggingface_token", "absent", _HUB, str, None),
    ("huggingface_repo_visibility", "absent", _HUB, str, None),
    ("save_state_to_huggingface", "absent", _HUB, bool, False),
    ("resume_from_huggingface", "absent", _HISTORY, bool, False),
    ("async_upload", "absent", _HUB, bool, False),
    ("save_precision", "absent", "checkpoints are float32", str, None),
    ("save_every_n_epochs", "absent", _SAVING, int, None),
    ("save_every_n_steps", "key", "evaluation.at_steps", int, None),
    ("save_n_epoch_ratio", "absent", _SAVING, int, None),
    ("save_last_n_epochs", "absent", _SAVING, int, None),
    ("save_last_n_epochs_state", "absent", _SAVING, int, None),
    ("save_last_n_steps", "absent", _SAVING, int, None),
    ("save_last_n_steps_state", "absent", _SAVING, int, None),
    ("save_state", "absent", _SAVING, bool, False),
    ("save_state_on_train_end", "absent", _SAVING, bool, False),
    ("save_model_as", "absent", _SAVING, str, None),
    ("use_safetensors", "absent", _SAVING, bool, False),
    ("resume", "absent", _HISTORY, str, None),
    ("train_batch_size", "key", "methods.*.train_batch_size", int, 1),
    ("max_token_length", "refused", "the text encoder reads 77 tokens", int, None),
    ("mem_eff_attn", "absent", "attention is PyTorch's own", bool, False),
    ("torch_compile", "key", "methods.*.compile", bool, False),
    ("dynamo_backend", "absent", "compiled by PyTorch's own", str, "inductor"),
    ("xformers", "absent", "attention is PyTorch's own", bool, False),
    ("sdpa", "absent", "attention is PyTorch's own", bool, False),
    ("vae", "refused", "the VAE is the base model's", str, None),
    ("max_train_steps", "key", "methods.*.max_train_steps", int, 1600),
    ("max_train_epochs", "key", "methods.*.max_train_steps", int, None),
    ("max_data_loader_n_workers", "absent", _LOADING, int, 8),
    ("persistent_data_loader_workers", "absent", _LOADING, bool, False),
    ("seed", "key", "methods.*.seed", int, None),
    ("gradient_checkpointing", "key", "methods.*.gradient_checkpointing", bool, False),
    ("gradient_accumulation_steps", "key", "methods.*.gradient_accumulation_steps", int, 1),
    ("mixed_precision", "key", "methods.*.mixed_precision", str, "no"),
    ("full_fp16", "refused", _HALVES, bool, False),
    ("full_bf16", "refused", _HALVES, bool, False),
    ("fp8_base", "refused", "the base model is not rounded to 8 bits", bool, False),
    ("ddp_timeout", "absent", _PLACES, int, None),
    ("ddp_gradient_as_bucket_view", "absent", _MEMORY, bool, False),
    ("ddp_static_graph", "absent", _MEMORY, bool, False),
    ("clip_skip", "key", "clip_skip", int, None),
    ("logging_dir", "absent", _LOGS, str, None),
    ("log_with", "absent", _LOGS, str, None),
    ("log_prefix", "absent", _LOGS, str, None),
    ("log_tracker_name", "absent", _LOGS, str, None),
    ("wandb_run_name", "absent", _LOGS, str, None),
    ("log_tracker_config", "absent", _LOGS, str, None),
    ("wandb_api_key", "absent", _LOGS, str, None),
    ("log_config", "absent", _LOGS, bool, False),
    ("noise_offset", "key", "methods.*.noise_offset", float, None),
    ("noise_offset_random_strength", "refused", _NOISE, bool, False),
    ("multires_noise_iterations", "refused", _NOISE, int, None),
    ("ip_noise_gamma", "refused", _NOISE, float, None),
    ("ip_noise_gamma_random_strength", "absent", "only counts with ip_noise_gamma, which is refused", bool, False),
    ("multires_noise_discount", "absent", "only counts with multires_noise_iterations, which is refused", float, 0.3),
    ("adaptive_noise_scale", "refused", _NOISE, float, None),
    ("zero_terminal_snr", "refused", _NOISE, bool, False),
    ("min_timestep", "refused", "timesteps are drawn from all", int, None),
    ("max_timestep", "refused", "timesteps are drawn from all", int, None),
    ("loss_type", "refused", _LOSS, str, "l2"),
    ("huber_schedule", "absent", "only counts with a loss_type that is refused", str, "snr"),
    ("huber_c", "absent", "only counts with a loss_type that is refused", float, 0.1),
    ("huber_scale", "absent", "only counts with a loss_type that is refused", float, 1.0),
    ("lowram", "absent", _MEMORY, bool, False),
    ("highvram", "absent", _MEMORY, bool, False),
    ("sample_every_n_steps", "absent", _LOOKS, int, None),
    ("sample_at_first", "absent", _LOOKS, bool, False),
    ("sample_every_n_epochs", "absent", _LOOKS, int, None),
    ("sample_prompts", "key", "evaluation.prompts", str, None),
    ("sample_sampler", "absent", _LOOKS, str, "ddim"),
    ("config_file", "absent", "it is read", str, None),
    ("output_config", "absent", "nothing is trained by it", bool, False),
    ("dataset_config", "absent", "it is read", str, None),
    ("conditioning_data_dir", "refused", "for ControlNets", str, None),
    ("masked_loss", "refused", "of masks there is only the face's (face_loss_weight)", bool, False),
    ("cache_text_encoder_outputs", "absent", "a frozen text encoder reads a prompt once in any case", bool, False),
    ("cache_text_encoder_outputs_to_disk", "absent", "a frozen text encoder reads a prompt once", bool, False),
    ("text_encoder_batch_size", "absent", _MEMORY, int, None),
    ("disable_mmap_load_safetensors", "absent", _MEMORY, bool, False),
    ("weighting_scheme", "absent", _FLOW, str, "uniform"),
    ("logit_mean", "absent", _FLOW, float, 0.0),
    ("logit_std", "absent", _FLOW, float, 1.0),
    ("mode_scale", "absent", _FLOW, float, 1.29),
    ("blocks_to_swap", "absent", _MEMORY, int, None),
    ("train_data_dir", "key", "subject.photos", str, None),
    ("reg_data_dir", "key", "subject.class_images", str, None),
    ("prior_loss_weight", "key", "methods.*.prior_loss_weight", float, 1.0),
    ("debug_dataset", "absent", "nothing is trained by it", bool, False),
    ("cache_latents", "absent", "latents are always cached, as mean and standard deviation", bool, False),
    ("cache_latents_to_disk", "absent", "latents are always cached", bool, False),
    ("skip_cache_check", "absent", "latents are always cached", bool, False),
    ("vae_batch_size", "absent", _MEMORY, int, 1),
    ("dataset_class", "refused", "photos are a folder", str, None),
    ("in_json", "refused", "captions are .txt files beside the photos", str, None),
    ("dataset_repeats", "absent", "only counts with in_json, which is refused", int, 1),
    ("no_half_vae", "absent", "the VAE's precision is mixed_precision's", bool, False),
    ("min_snr_gamma", "key", "methods.*.snr_gamma", float, None),
    ("scale_v_pred_loss_like_noise_pred", "refused", _LOSS, bool, False),
    ("v_pred_like_loss", "refused", _LOSS, float, None),
    ("debiased_estimation_loss", "refused", "of weights for the loss there is min-SNR's (snr_gamma)", bool, False),
    ("weighted_captions", "refused", _WORDS, bool, False),
)
_KOHYA_SUBSET: _Rows = (
    ("shuffle_caption", "key", "methods.*.shuffle_caption", bool, False),
    ("caption_separator", "refused", "a caption's parts stand between commas", str, ","),
    ("caption_extension", "absent", "captions are .txt or .caption files beside the photos", str, ".caption"),
    ("keep_tokens", "key", "methods.*.keep_tokens", int, 0),
    ("keep_tokens_separator", "refused", "keep_tokens counts the parts to be kept", str, ""),
    ("secondary_separator", "refused", _WORDS, str, None),
    ("enable_wildcard", "refused", _WORDS, bool, False),
    ("caption_prefix", "refused", _WORDS, str, None),
    ("caption_suffix", "refused", _WORDS, str, None),
    ("color_aug", "refused", "colours are a person's likeness", bool, False),
    ("flip_aug", "key", "subject.random_flip", bool, False),
    ("face_crop_aug_range", "differs", "photos are cut once, before the first step", str, None),
    ("random_crop", "differs", "photos are cut once, before the first step", bool, False),
    ("resolution", "key", "subject.resolution", str, None),
    ("enable_bucket", "differs", _SQUARES, bool, False),
    ("min_bucket_reso", "differs", _SQUARES, int, 256),
    ("max_bucket_reso", "differs", _SQUARES, int, 1024),
    ("bucket_reso_steps", "differs", _SQUARES, int, 64),
    ("bucket_no_upscale", "differs", _SQUARES, bool, False),
    ("resize_interpolation", "differs", "pictures are resized by lanczos", str, None),
    ("token_warmup_min", "absent", "only counts with token_warmup_step, which is refused", int, 1),
    ("token_warmup_step", "refused", _WORDS, float, 0),
    ("alpha_mask", "refused", "of masks there is only the face's (face_loss_weight)", bool, False),
    ("cache_info", "absent", _LOADING, bool, False),
    ("caption_dropout_rate", "key", "methods.*.caption_dropout_rate", float, 0.0),
    ("caption_dropout_every_n_epochs", "refused", "captions are dropped by chance (caption_dropout_rate)", int, 0),
    ("caption_tag_dropout_rate", "refused", "captions are dropped whole (caption_dropout_rate)", float, 0.0),
)
_KOHYA_COMMAND_ONLY: _Rows = (("caption_extention", "absent", "the older spelling of caption_extension", str, None),)
_KOHYA_DATASET_ONLY: _Rows = (
    ("image_dir", "key", "subject.photos", str, None),
    ("num_repeats", "key", "methods.*.max_train_steps", int, 1),
    ("class_tokens", "key", "subject.instance_prompt", str, None),
    ("is_reg", "key", "methods.*.with_prior_preservation", bool, False),
    ("batch_size", "key", "methods.*.train_batch_size", int, 1),
    ("network_multiplier", "refused", "adapters train at their full strength", float, 1.0),
    ("metadata_file", "refused", "captions are .txt files beside the photos", str, None),
    ("conditioning_data_dir", "refused", "for ControlNets", str, None),
    ("custom_attributes", "absent", "no setting of the training", dict, None),
    ("validation_seed", "absent", "only counts with validation_split", int, None),
    ("validation_split", "refused", _VALIDATION, float, 0.0),
)
_KOHYA_NETWORK: _Rows = (
    ("cpu_offload_checkpointing", "absent", _MEMORY, bool, False),
    ("no_metadata", "absent", _SAVING, bool, False),
    ("unet_lr", "key", "methods.*.learning_rate", float, None),
    ("text_encoder_lr", "key", "methods.*.text_encoder_learning_rate", float, None),
    ("fp8_base_unet", "refused", "the base model is not rounded to 8 bits", bool, False),
    ("network_weights", "key", "initial_weights", str, None),
    ("network_module", "key", "methods.lora.adapter", str, None),
    ("network_dim", "key", "methods.lora.rank", int, 4),
    ("network_alpha", "key", "methods.lora.lora_alpha", float, 1.0),
    ("network_dropout", "refused", "it drops what is between A and B; lora_dropout drops what enters A", float, None),
    ("network_args", "key", "methods.lora.target_modules", str, None),
    ("network_train_unet_only", "key", "methods.*.train_text_encoder", bool, False),
    ("network_train_text_encoder_only", "refused", "the UNet always trains", bool, False),
    ("training_comment", "absent", _SAVING, str, None),
    ("dim_from_weights", "refused", "the rank is methods.lora.rank", bool, False),
    ("scale_weight_norms", "refused", "adapters' norms are not held down", float, None),
    ("base_weights", "refused", "nothing is merged into the base model before", str, None),
    ("base_weights_multiplier", "absent", "only counts with base_weights, which is refused", float, None),
    ("skip_until_initial_step", "absent", _HISTORY, bool, False),
    ("initial_epoch", "refused", _HISTORY, int, None),
    ("initial_step", "refused", _HISTORY, int, None),
    ("validation_seed", "absent", "only counts with validation_split", int, None),
    ("validation_split", "refused", _VALIDATION, float, 0.0),
    ("validate_every_n_steps", "absent", "only counts with validation_split", int, None),
    ("validate_every_n_epochs", "absent", "only counts with validation_split", int, None),
    ("max_validation_steps", "absent", "only counts with validation_split", int, None),
)
_KOHYA_DB: _Rows = (
    ("learning_rate_te", "key", "methods.*.text_encoder_learning_rate", float, None),
    ("no_token_padding", "refused", "prompts are padded to 77 tokens", bool, False),
    ("stop_text_encoder_training", "key", "methods.*.stop_text_encoder_training", int, None),
)
KOHYA: tuple[Flag, ...] = (
    *_table(_KOHYA_IN_BOTH, NETWORK, DB, many=("optimizer_args", "lr_scheduler_args")),
    *_table(_KOHYA_SUBSET, NETWORK, DB, DATASET),
    *_table(_KOHYA_COMMAND_ONLY, NETWORK, DB),
    *_table(
        _KOHYA_NETWORK,
        NETWORK,
        many=("text_encoder_lr", "network_args", "base_weights", "base_weights_multiplier"),
    ),
    *_table(_KOHYA_DB, DB),
    *_table(_KOHYA_DATASET_ONLY, DATASET),
)


def flags_of(table: Iterable[Flag], script: str) -> dict[str, Flag]:
    """A script's rows by their names."""
    return {flag.name: flag for flag in table if script in flag.scripts}
