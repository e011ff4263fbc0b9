"""Keys of a Hugging Face config: which may be passed over, which must hold one value, and which nobody may guess at.

A key that is neither read by a family nor listed here is refused: a silent wrong count is worse than a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping

# Bookkeeping, training, generation and numeric details: they change no shape and no count.
_HARMLESS = """
_name_or_path architectures auto_map model_type transformers_version torch_dtype dtype use_cache id2label label2id
bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id unk_token_id mask_token_id
forced_bos_token_id forced_eos_token_id image_token_id image_token_index video_token_id boi_token_index
eoi_token_index boi_token_id eoi_token_id tokenizer_class prefix problem_type task_specific_params finetuning_task
return_dict return_dict_in_generate output_attentions output_hidden_states output_scores output_router_logits
output_past torchscript use_bfloat16 tf_legacy_loss remove_invalid_values chunk_size_feed_forward is_decoder
bad_words_ids begin_suppress_tokens suppress_tokens diversity_penalty do_sample early_stopping
encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty max_length min_length
no_repeat_ngram_size num_beam_groups num_beams num_return_sequences repetition_penalty temperature top_k top_p
typical_p max_new_tokens cache_implementation keys_to_ignore_at_inference _attn_implementation
_attn_implementation_autoset attn_implementation use_flash_attn use_flash_attention_2 unsloth_version unsloth_fixed
initializer_range init_std initializer_factor attention_dropout hidden_dropout resid_pdrop embd_pdrop attn_pdrop
dropout activation_dropout layerdrop classifier_dropout summary_type summary_use_proj summary_activation
summary_proj_to_labels summary_first_dropout gradient_checkpointing pretraining_tp ep_size rms_norm_eps
layer_norm_eps layer_norm_epsilon norm_eps hidden_act hidden_activation activation_function max_position_embeddings
original_max_position_embeddings initial_context_length model_max_length n_ctx rope_theta rope_scaling
rope_parameters rope_local_base_freq rotary_emb_base rotary_base rope_type router_aux_loss_coef aux_loss_alpha
seq_aux router_jitter_noise input_jitter_noise norm_topk_prob routed_scaling_factor scoring_func swiglu_limit
swiglu_alpha num_nextn_predict_layers num_mtp_layers attn_temperature_tuning floor_scale attn_scale
for_llm_compressor indexer_rope_interleave scale_attn_weights scale_attn_by_inverse_layer_idx
reorder_and_upcast_attn tie_word_embeddings quantization_config
"""
HARMLESS = frozenset(_HARMLESS.split())

# Keys that are harmless at one value only; any other value adds or removes weights that no reader here counts.
FIXED: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_encoder_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "lm_head_bias": (False, None),
    "full_attn_mod": (1, None),
    "interpolate_factor": (1, None),
    "use_mrope": (False, None),
    "qkv_bias": (False, None),
    "shared_expert_intermediate_size": (0, None),
    "use_bidirectional_attention": (False, None),
}

# Structures that the readers know of and do not understand. Inactive values (null, false, 0, empty) are no structure.
HAZARDS: dict[str, str] = {
    "linear_attn_config": "linear-attention layers",
    "full_attention_interval": "linear-attention layers",
    "linear_num_key_heads": "linear-attention layers",
    "linear_num_value_heads": "linear-attention layers",
    "linear_conv_kernel_dim": "linear-attention layers",
    "lightning_config": "linear-attention layers",
    "attn_type_list": "linear-attention layers",
    "hybrid_override_pattern": "Mamba layers among attention layers",
    "layers_block_type": "Mamba layers among attention layers",
    "attn_layer_period": "Mamba layers among attention layers",
    "mamba_d_state": "Mamba layers among attention layers",
    "mamba_num_heads": "Mamba layers among attention layers",
    "ssm_cfg": "Mamba layers among attention layers",
    "block_types": "recurrent layers among attention layers",
    "conv_L_cache": "convolution layers among attention layers",
    "routed_expert_hidden_size": "a latent mixture of experts",
    "latent_moe_use_norm": "a latent mixture of experts",
    "moe_latent_size": "a latent mixture of experts",
    "mla_use_output_gate": "gated attention output",
    "attn_output_gate": "gated attention output",
    "attn_res_block_size": "residuals attended across layers",
    "compress_ratios": "compressed sparse attention",
    "o_lora_rank": "a low-rank output projection",
    "o_groups": "a grouped output projection",
    "hc_mult": "hyper-connections",
    "num_hash_layers": "hash-routed layers",
    "global_head_dim": "another head size in global layers",
    "num_global_key_value_heads": "another KV head count in global layers",
    "attention_k_eq_v": "keys that serve as values",
    "num_kv_shared_layers": "layers that share KV caches",
    "enable_moe_block": "a dense network and a mixture of experts in one block",
    "use_double_wide_mlp": "networks of two widths",
    "hidden_size_per_layer_input": "per-layer embeddings",
    "altup_num_inputs": "alternating updates",
    "laurel_rank": "augmented residuals",
    "cross_attention_layers": "cross-attention layers",
    "encoder_layers": "an encoder",
    "num_shared_blocks": "blocks that share weights",
    "block_configs": "blocks configured one by one",
}
_ORDINARY_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention"}

# Multimodal wrappers whose language model is an ordinary one of ours, and what it is when the file does not say.
WRAPPERS: dict[str, str] = {
    "llama4": "llama4_text",
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "kimi_k25": "deepseek_v3",
}
TEXT_KEYS = ("text_config", "llm_config", "language_config")
INHERITED = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")
# Only the language model is planned for: its siblings and the tokens that stand for their output are passed over.
_WRAPPER_HARMLESS = """
vision_config audio_config mm_tokens_per_image spatial_merge_size vision_feature_layer
vision_feature_select_strategy projector_hidden_act multimodal_projector_bias projection_hidden_size
projection_layer_norm_eps media_placeholder_token_id ignore_index image_placeholder video_placeholder
use_unified_vision_chunk vision_end_token_id vision_start_token_id
"""
WRAPPER_HARMLESS = frozenset(_WRAPPER_HARMLESS.split())


def hazards_in(config: Mapping[str, object]) -> list[tuple[str, str]]:
    """(key, structure) of everything in `config` that is known not to be understood."""
    found = [(key, structure) for key, structure in HAZARDS.items() if config.get(key)]
    types = config.get("layer_types")
    if isinstance(types, list):
        strange = {str(kind)[:40] for kind in types} - _ORDINARY_LAYERS
        found.extend(("layer_types", f"layers of type {kind}") for kind in sorted(strange))
    return found
