"""Names of settings as the parsers of other trainers have them; names are facts, their texts are not here.

diffusers 58eb52c: `examples/dreambooth` and `examples/advanced_diffusion_training`. kohya-ss/sd-scripts 48d368f:
`library/train_util.py`, `library/custom_train_functions.py`, the two scripts,
and the schema of `library/config_util.py`.
OneTrainer 23df3832: `modules/util/config/TrainConfig.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

DIFFUSERS_FLAGS: Mapping[str, str] = {
    "train_dreambooth": """
        pretrained_model_name_or_path revision variant tokenizer_name instance_data_dir class_data_dir
        instance_prompt class_prompt with_prior_preservation prior_loss_weight num_class_images output_dir seed
        resolution center_crop train_text_encoder train_batch_size sample_batch_size num_train_epochs
        max_train_steps checkpointing_steps checkpoints_total_limit resume_from_checkpoint
        gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps
        lr_num_cycles lr_power use_8bit_adam dataloader_num_workers adam_beta1 adam_beta2 adam_weight_decay
        adam_epsilon max_grad_norm push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to
        validation_prompt num_validation_images validation_steps mixed_precision prior_generation_precision
        local_rank enable_xformers_memory_efficient_attention set_grads_to_none offset_noise snr_gamma
        pre_compute_text_embeddings tokenizer_max_length text_encoder_use_attention_mask skip_save_text_encoder
        validation_images class_labels_conditioning validation_scheduler
    """,
    "train_dreambooth_lora": """
        pretrained_model_name_or_path revision variant tokenizer_name instance_data_dir class_data_dir
        instance_prompt class_prompt validation_prompt num_validation_images validation_epochs
        with_prior_preservation prior_loss_weight num_class_images output_dir seed resolution center_crop
        train_text_encoder train_batch_size sample_batch_size num_train_epochs max_train_steps
        checkpointing_steps checkpoints_total_limit resume_from_checkpoint gradient_accumulation_steps
        gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps lr_num_cycles lr_power
        dataloader_num_workers use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
        push_to_hub hub_token hub_model_id logging_dir allow_tf32 report_to mixed_precision
        prior_generation_precision local_rank enable_xformers_memory_efficient_attention
        pre_compute_text_embeddings tokenizer_max_length text_encoder_use_attention_mask validation_images
        class_labels_conditioning rank lora_dropout image_interpolation_mode
    """,
    "train_dreambooth_lora_sd15_advanced": """
        pretrained_model_name_or_path pretrained_vae_model_name_or_path revision variant dataset_name
        dataset_config_name instance_data_dir cache_dir image_column caption_column repeats class_data_dir
        instance_prompt token_abstraction num_new_tokens_per_abstraction class_prompt validation_prompt
        num_validation_images validation_epochs with_prior_preservation prior_loss_weight num_class_images
        output_dir seed resolution center_crop train_text_encoder train_batch_size sample_batch_size
        num_train_epochs max_train_steps checkpointing_steps checkpoints_total_limit resume_from_checkpoint
        gradient_accumulation_steps gradient_checkpointing learning_rate text_encoder_lr scale_lr lr_scheduler
        snr_gamma lr_warmup_steps lr_num_cycles lr_power dataloader_num_workers train_text_encoder_ti
        train_text_encoder_ti_frac train_text_encoder_frac optimizer use_8bit_adam adam_beta1 adam_beta2
        prodigy_beta3 prodigy_decouple adam_weight_decay adam_weight_decay_text_encoder adam_epsilon
        prodigy_use_bias_correction prodigy_safeguard_warmup max_grad_norm push_to_hub hub_token hub_model_id
        logging_dir allow_tf32 report_to mixed_precision prior_generation_precision local_rank
        enable_xformers_memory_efficient_attention noise_offset rank lora_dropout use_dora cache_latents
        image_interpolation_mode
    """,
}
"""Script -> its flags."""
KOHYA_FLAGS: Mapping[str, str] = {
    "train_network": """
        v2 v_parameterization pretrained_model_name_or_path tokenizer_cache_dir optimizer_type use_8bit_adam
        use_lion_optimizer learning_rate max_grad_norm optimizer_args lr_scheduler_type lr_scheduler_args
        lr_scheduler lr_warmup_steps lr_decay_steps lr_scheduler_num_cycles lr_scheduler_power
        fused_backward_pass lr_scheduler_timescale lr_scheduler_min_lr_ratio output_dir output_name
        huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token
        huggingface_repo_visibility save_state_to_huggingface resume_from_huggingface async_upload
        save_precision save_every_n_epochs save_every_n_steps save_n_epoch_ratio save_last_n_epochs
        save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_state save_state_on_train_end
        resume train_batch_size max_token_length mem_eff_attn torch_compile dynamo_backend xformers sdpa vae
        max_train_steps max_train_epochs max_data_loader_n_workers persistent_data_loader_workers seed
        gradient_checkpointing gradient_accumulation_steps mixed_precision full_fp16 full_bf16 fp8_base
        ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph clip_skip logging_dir log_with log_prefix
        log_tracker_name wandb_run_name log_tracker_config wandb_api_key log_config noise_offset
        noise_offset_random_strength multires_noise_iterations ip_noise_gamma ip_noise_gamma_random_strength
        multires_noise_discount adaptive_noise_scale zero_terminal_snr min_timestep max_timestep loss_type
        huber_schedule huber_c huber_scale lowram highvram sample_every_n_steps sample_at_first
        sample_every_n_epochs sample_prompts sample_sampler config_file output_config conditioning_data_dir
        masked_loss cache_text_encoder_outputs cache_text_encoder_outputs_to_disk text_encoder_batch_size
        disable_mmap_load_safetensors weighting_scheme logit_mean logit_std mode_scale blocks_to_swap
        train_data_dir cache_info shuffle_caption caption_separator caption_extension caption_extention
        keep_tokens keep_tokens_separator secondary_separator enable_wildcard caption_prefix caption_suffix
        color_aug flip_aug face_crop_aug_range random_crop debug_dataset resolution cache_latents vae_batch_size
        cache_latents_to_disk skip_cache_check enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps
        bucket_no_upscale resize_interpolation token_warmup_min token_warmup_step alpha_mask dataset_class
        save_model_as use_safetensors prior_loss_weight caption_dropout_rate caption_dropout_every_n_epochs
        caption_tag_dropout_rate reg_data_dir in_json dataset_repeats min_snr_gamma
        scale_v_pred_loss_like_noise_pred v_pred_like_loss debiased_estimation_loss weighted_captions
        dataset_config cpu_offload_checkpointing no_metadata unet_lr text_encoder_lr fp8_base_unet
        network_weights network_module network_dim network_alpha network_dropout network_args
        network_train_unet_only network_train_text_encoder_only training_comment dim_from_weights
        scale_weight_norms base_weights base_weights_multiplier no_half_vae skip_until_initial_step
        initial_epoch initial_step validation_seed validation_split validate_every_n_steps
        validate_every_n_epochs max_validation_steps
    """,
    "train_db": """
        v2 v_parameterization pretrained_model_name_or_path tokenizer_cache_dir optimizer_type use_8bit_adam
        use_lion_optimizer learning_rate max_grad_norm optimizer_args lr_scheduler_type lr_scheduler_args
        lr_scheduler lr_warmup_steps lr_decay_steps lr_scheduler_num_cycles lr_scheduler_power
        fused_backward_pass lr_scheduler_timescale lr_scheduler_min_lr_ratio output_dir output_name
        huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token
        huggingface_repo_visibility save_state_to_huggingface resume_from_huggingface async_upload
        save_precision save_every_n_epochs save_every_n_steps save_n_epoch_ratio save_last_n_epochs
        save_last_n_epochs_state save_last_n_steps save_last_n_steps_state save_state save_state_on_train_end
        resume train_batch_size max_token_length mem_eff_attn torch_compile dynamo_backend xformers sdpa vae
        max_train_steps max_train_epochs max_data_loader_n_workers persistent_data_loader_workers seed
        gradient_checkpointing gradient_accumulation_steps mixed_precision full_fp16 full_bf16 fp8_base
        ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph clip_skip logging_dir log_with log_prefix
        log_tracker_name wandb_run_name log_tracker_config wandb_api_key log_config noise_offset
        noise_offset_random_strength multires_noise_iterations ip_noise_gamma ip_noise_gamma_random_strength
        multires_noise_discount adaptive_noise_scale zero_terminal_snr min_timestep max_timestep loss_type
        huber_schedule huber_c huber_scale lowram highvram sample_every_n_steps sample_at_first
        sample_every_n_epochs sample_prompts sample_sampler config_file output_config conditioning_data_dir
        masked_loss cache_text_encoder_outputs cache_text_encoder_outputs_to_disk text_encoder_batch_size
        disable_mmap_load_safetensors weighting_scheme logit_mean logit_std mode_scale blocks_to_swap
        train_data_dir cache_info shuffle_caption caption_separator caption_extension caption_extention
        keep_tokens keep_tokens_separator secondary_separator enable_wildcard caption_prefix caption_suffix
        color_aug flip_aug face_crop_aug_range random_crop debug_dataset resolution cache_latents vae_batch_size
        cache_latents_to_disk skip_cache_check enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps
        bucket_no_upscale resize_interpolation token_warmup_min token_warmup_step alpha_mask dataset_class
        save_model_as use_safetensors prior_loss_weight caption_dropout_rate caption_dropout_every_n_epochs
        caption_tag_dropout_rate reg_data_dir in_json dataset_repeats min_snr_gamma
        scale_v_pred_loss_like_noise_pred v_pred_like_loss debiased_estimation_loss weighted_captions
        dataset_config learning_rate_te no_token_padding stop_text_encoder_training no_half_vae
    """,
    "dataset": """
        color_aug face_crop_aug_range flip_aug num_repeats random_crop shuffle_caption keep_tokens
        keep_tokens_separator secondary_separator caption_separator enable_wildcard token_warmup_min
        token_warmup_step caption_prefix caption_suffix custom_attributes resize_interpolation
        caption_dropout_every_n_epochs caption_dropout_rate caption_tag_dropout_rate caption_extension
        class_tokens cache_info image_dir is_reg alpha_mask metadata_file conditioning_data_dir batch_size
        bucket_no_upscale bucket_reso_steps enable_bucket max_bucket_reso min_bucket_reso validation_seed
        validation_split resolution network_multiplier
    """,
}
"""Script, or the dataset config, -> its settings."""
ONETRAINER_SETTINGS = """
    training_method model_type debug_mode debug_dir workspace_dir cache_dir huggingface_cache_dir offline_mode
    tensorboard tensorboard_expose tensorboard_always_on tensorboard_port validation validate_after
    validate_after_unit continue_last_backup prevent_overwrites include_train_config multi_gpu device_indexes
    gradient_reduce_precision fused_gradient_reduce async_gradient_reduce async_gradient_reduce_buffer
    base_model_name output_dtype output_model_format output_model_destination async_offloading
    force_circular_padding compile concept_file_name concepts aspect_ratio_bucketing latent_caching
    clear_cache_before_training learning_rate_scheduler custom_learning_rate_scheduler scheduler_params
    learning_rate learning_rate_warmup_steps learning_rate_cycles learning_rate_min_factor epochs batch_size
    gradient_accumulation_steps ema ema_decay ema_update_step_interval dataloader_threads train_device temp_device
    train_dtype fallback_train_dtype enable_autocast_cache only_cache resolution frames attention_mechanism
    mse_strength mae_strength log_cosh_strength huber_strength huber_delta vb_loss_strength loss_weight_fn
    loss_weight_strength dropout_probability loss_scaler learning_rate_scaler clip_grad_norm offset_noise_weight
    generalized_offset_noise perturbation_noise_weight rescale_noise_scheduler_to_zero_terminal_snr
    force_v_prediction force_epsilon_prediction min_noising_strength max_noising_strength timestep_distribution
    noising_weight noising_bias timestep_shift dynamic_timestep_shifting unet prior transformer
    unconditional_transformer quantization text_encoder text_encoder_layer_skip text_encoder_sequence_length
    text_encoder_2 text_encoder_2_layer_skip text_encoder_2_sequence_length text_encoder_3 text_encoder_3_layer_skip
    text_encoder_4 text_encoder_4_layer_skip vae effnet_encoder decoder decoder_text_encoder decoder_vqgan
    masked_training unmasked_probability unmasked_weight normalize_masked_area_loss masked_prior_preservation_weight
    custom_conditioning_image layer_filter layer_filter_preset layer_filter_regex embedding_learning_rate
    preserve_embedding_norm embedding additional_embeddings embedding_weight_dtype cloud peft_type lora_model_name
    lora_rank lora_alpha lora_decompose lora_decompose_norm_epsilon lora_decompose_output_axis lora_weight_dtype
    bundle_additional_embeddings oft_block_size oft_block_share oft_scaled lokr_dim lokr_decompose_both
    lokr_decompose_factor lokr_use_tucker lokr_weight_decompose lokr_dora_on_output lokr_full_matrix lokr_vec_trick
    optimizer optimizer_defaults sample_definition_file_name samples sample_after sample_after_unit
    sample_skip_first sample_image_format sample_video_format sample_audio_format samples_to_tensorboard
    non_ema_sampling backup_after backup_after_unit rolling_backup rolling_backup_count backup_before_save
    save_every save_every_unit save_skip_first save_filename_prefix secrets
"""
"""Of a config file, at its top."""
