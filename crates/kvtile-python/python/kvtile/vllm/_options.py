"""Classifies each of vLLM's options by its effect on KV. This module is data only.

``OPTIONS`` lists every field of every config of an engine of vLLM 0.32, by how the connector treats it. A field that is
not listed belongs to a later vLLM: it becomes a part of the identity unless it is at its default. Sources are the
fields' own descriptions in ``vllm/config`` and, where these are silent, the code that reads them.
"""

from __future__ import annotations

from enum import Enum


class Effect(Enum):
    """How the connector treats an option."""

    IDENTITY = "part of the identity, unless it is at its default"
    COVERED = "the identity has what it stands for: digest or commit of the weights, fields of the config, shape, rank"
    KEYS = "the keys of blocks have what it stands for, or the blocks are not kept"
    REFUSED = "refused but for the values that are known to be right"
    PARTS = "a config of its own"
    NOTHING = "KV does not depend on it, or by rounding alone"


def _fields(table: dict[Effect, str]) -> dict[str, Effect]:
    return {name: effect for effect, names in table.items() for name in names.split()}


OPTIONS: dict[str, dict[str, Effect]] = {
    name: _fields(table)
    for name, table in {
        "VllmConfig": {
            Effect.PARTS: """model_config cache_config parallel_config scheduler_config device_config load_config
                offload_config attention_config aux_output_config engram_config mamba_config kernel_config lora_config
                speculative_config structured_outputs_config observability_config logging_config compilation_config
                profiler_config kv_transfer_config kv_events_config ec_transfer_config ec_manager_config
                reasoning_config watermark_config""",
            Effect.IDENTITY: "additional_config",
            # The prepared form of the quantisation that model_config names.
            Effect.COVERED: "quant_config",
            # A canvas attends in both directions; weight transfer replaces the weights under the cache.
            Effect.REFUSED: "diffusion_config weight_transfer_config",
            Effect.NOTHING: "instance_id optimization_level performance_mode shutdown_timeout",
        },
        "ModelConfig": {
            Effect.PARTS: "pooler_config multimodal_config",
            Effect.IDENTITY: """quantization quantization_config hf_overrides model_class_overrides model_impl
                config_format code_revision""",
            Effect.COVERED: """model revision hf_config hf_text_config hf_config_path dtype max_model_len
                trust_remote_code runner convert""",
            Effect.REFUSED: "model_weights enable_sleep_mode",
            Effect.KEYS: "enable_prompt_embeds",
            Effect.NOTHING: """tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init seed is_submodel_config
                word_embeddings_untied_by_checkpoint allowed_local_media_path allowed_media_domains
                spec_target_max_model_len allow_deprecated_quantization enforce_eager return_sampling_mask max_logprobs
                logprobs_mode use_fp64_gumbel enable_trace_replay disable_sliding_window disable_cascade_attn
                served_model_name hf_token generation_config override_generation_config sleep_preserve_parameter_names
                sleep_mode_backend sleep_mode_offload_cudagraph enable_nccl_comm_suspend enable_cumem_allocator
                logits_processors io_processor_plugin renderer_num_workers""",
        },
        "CacheConfig": {
            Effect.IDENTITY: "cache_dtype kv_cache_dtype_skip_layers kv_sharing_fast_prefill swa_bounded_replay",
            # The identity of a group has the dtypes of its states.
            Effect.COVERED: """block_size kv_cache_layout sliding_window mamba_block_size mamba_cache_dtype
                mamba_ssm_cache_dtype""",
            # A state is whole only together with inputs that are kept elsewhere.
            Effect.REFUSED: "use_replayssm use_kda_recoverssm",
            Effect.NOTHING: """user_specified_block_size prefix_match_unit gpu_memory_utilization is_attention_free
                num_gpu_blocks_override enable_prefix_caching prefix_caching_hash_algo prefix_cache_retention_interval
                mamba_page_size_padded skip_page_size_padded mamba_cache_mode enable_mamba_shared_prefix_checkpoint
                replayssm_buffer_len num_gpu_blocks num_cpu_blocks effective_attention_block_size kv_cache_size_tokens
                kv_cache_max_concurrency hash_block_size cache_hit_alignment_tokens kv_cache_memory_bytes
                kv_offloading_size kv_offloading_backend _block_size_resolved""",
        },
        "ParallelConfig": {
            Effect.PARTS: "eplb_config fault_tolerance_config",
            # Some send activations between experts in fewer bits.
            Effect.IDENTITY: "all2all_backend worker_cls worker_extension_cls",
            Effect.COVERED: "tensor_parallel_size rank world_size",
            Effect.REFUSED: """pipeline_parallel_size prefill_context_parallel_size decode_context_parallel_size""",
            Effect.NOTHING: """data_parallel_size data_parallel_size_local data_parallel_rank data_parallel_rank_local
                data_parallel_master_ip data_parallel_rpc_port dp_sync_interval data_parallel_master_port
                data_parallel_backend data_parallel_external_lb data_parallel_hybrid_lb is_moe_model enable_hc_sp
                enable_expert_parallel enable_batch_sharded_sampling enable_ep_weight_filter enable_eplb
                expert_placement_strategy max_parallel_loading_workers disable_custom_all_reduce
                enable_shm_tensor_arena enable_elastic_ep elastic_ep_max_dp_size enable_dbo ubatch_size
                dbo_decode_token_threshold dbo_prefill_token_threshold disable_nccl_for_dp_synchronization
                ray_workers_use_nsight ray_runtime_env placement_group distributed_executor_backend master_addr
                master_port node_rank nnodes numa_bind numa_bind_nodes numa_bind_cpus assigned_physical_gpu_ids
                distributed_timeout_seconds cpu_distributed_timeout_seconds _data_parallel_master_port_list
                _coord_store_port dcp_kv_cache_interleave_size dcp_comm_backend dcp_q_replicate
                cp_kv_cache_interleave_size _allow_auto_resolve_cp_interleave_size data_parallel_index
                _api_process_count _api_process_rank enable_fault_tolerance""",
        },
        "SchedulerConfig": {
            # A step would begin before the failed loads of the last one are known.
            Effect.REFUSED: "async_scheduling",
            Effect.COVERED: "runner_type",
            Effect.NOTHING: """max_num_batched_tokens max_num_scheduled_tokens max_num_seqs max_num_active_seqs
                long_prefill_token_threshold long_prefill_token_threshold_adaptive max_num_queued_reqs
                max_num_queued_tokens enable_chunked_prefill is_multimodal_model max_num_encoder_input_tokens
                encoder_cache_size policy disable_chunked_mm_input scheduler_cls disable_hybrid_kv_cache_manager
                scheduler_reserve_full_isl watermark prefill_schedule_interval stream_interval""",
        },
        "LoRAConfig": {
            Effect.IDENTITY: "lora_dtype target_modules enable_mixed_moe_lora_format enable_moe_shared_loras",
            Effect.KEYS: "default_mm_loras enable_tower_connector_lora",
            Effect.NOTHING: """max_lora_rank max_loras fully_sharded_loras max_cpu_loras specialize_active_lora
                max_lora_cls_labels""",
        },
        "LoadConfig": {
            Effect.IDENTITY: "ignore_patterns",
            # The weights may come from another source than the model's own files.
            Effect.REFUSED: "load_format model_loader_extra_config",
            Effect.NOTHING: """download_dir safetensors_load_strategy safetensors_prefetch_num_threads
                safetensors_prefetch_block_size device use_tqdm_on_load pt_load_map_location""",
        },
        "AttentionConfig": {
            Effect.IDENTITY: """disable_flashinfer_q_quantization use_prefill_query_quantization indexer_kv_dtype
                indexer_sparse_logits""",
            # A token would attend to later ones.
            Effect.REFUSED: "use_non_causal",
            Effect.PARTS: "hisparse_config",
            Effect.NOTHING: """backend minimax_m3_msa_decode_backend backend_per_kind flash_attn_version
                flash_attn_max_num_splits_for_cuda_graph tokenspeed_mla_min_split_kv tq_max_kv_splits_for_cuda_graph
                use_trtllm_attention mla_prefill_backend sparse_mla_force_mqa sparse_mla_prefill_workspace_factor
                flex_attn_block_m flex_attn_block_n flex_attn_q_block_size flex_attn_kv_block_size""",
        },
        "MultiModalConfig": {
            Effect.IDENTITY: "mm_device_do_normalize video_pruning_rate video_pruning_method",
            # Scales that depend on earlier inputs, or are in a separate file.
            Effect.REFUSED: "mm_encoder_attn_dtype",
            Effect.KEYS: """media_io_kwargs mm_processor_kwargs mm_processor_cache_gb mm_processor_cache_type
                mm_hasher_algorithm enable_mm_embeds allow_missing_mm_embeddings""",
            Effect.NOTHING: """language_model_only limit_per_prompt mm_shm_cache_max_object_size_mb mm_encoder_only
                mm_encoder_tp_mode mm_encoder_attn_backend mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path
                mm_encoder_fp8_scale_save_margin interleave_mm_strings skip_mm_profiling mm_tensor_ipc
                mm_ipc_gpu_memory_gb""",
        },
        "SpeculativeConfig": {
            # Drafters with their own KV depend on the next token; the others change nothing.
            Effect.REFUSED: "method",
            Effect.NOTHING: """enforce_eager num_speculative_tokens model draft_tensor_parallel_size
                tensor_parallel_size quantization moe_backend attention_backend kv_cache_dtype max_model_len revision
                code_revision index_share_for_mtp_iteration disable_padded_drafter_batch disable_eagle_block_drop
                use_local_argmax_reduction use_heterogeneous_vocab prompt_lookup_max prompt_lookup_min
                parallel_drafting target_model_config target_parallel_config num_speculative_tokens_per_batch_size
                draft_model_config draft_parallel_config suffix_decoding_max_tree_depth
                suffix_decoding_max_cached_requests suffix_decoding_max_spec_factor suffix_decoding_min_token_prob
                draft_load_config rejection_sample_method synthetic_acceptance_rates synthetic_acceptance_length
                enable_adaptive_verification draft_sample_method dspark_draft_topk""",
        },
        "KernelConfig": {
            Effect.IDENTITY: "moe_backend sparse_indexer_topk_backend linear_backend linear_backend_per_quant",
            Effect.NOTHING: """ir_op_priority enable_flashinfer_autotune enable_rocm_segmented_attn_autotune
                enable_cutedsl_warmup enable_jit_warmup""",
        },
        "KVTransferConfig": {
            Effect.NOTHING: """kv_connector engine_id kv_buffer_device kv_role kv_port kv_connector_extra_config
                kv_connector_module_path enable_permute_local_kv kv_load_failure_policy""",
        },
        "CompilationConfig": {
            Effect.PARTS: "pass_config",
            Effect.NOTHING: """mode debug_dump_path cache_dir compile_cache_save_format backend custom_ops
                ir_enable_torch_wrap splitting_ops compile_mm_encoder cudagraph_mm_encoder
                encoder_cudagraph_token_budgets encoder_cudagraph_max_vision_items_per_batch
                encoder_cudagraph_max_frames_per_batch cudagraph_decoder_replay decoder_replay_cudagraph_capture_sizes
                decoder_replay_trim_threshold compile_sizes compile_ranges_endpoints inductor_compile_config
                inductor_passes cudagraph_mode cudagraph_num_of_warmups cudagraph_capture_sizes cudagraph_copy_inputs
                cudagraph_specialize_lora use_inductor_graph_partition max_cudagraph_capture_size
                dynamic_shapes_config local_cache_dir fast_moe_cold_start enabled_custom_ops disabled_custom_ops
                traced_files compilation_time encoder_compilation_time static_forward_context static_all_moe_layers""",
        },
        "PassConfig": {
            Effect.NOTHING: """fuse_norm_quant fuse_act_quant fuse_attn_quant eliminate_noops fuse_allreduce_rms
                enable_qk_norm_rope_fusion fuse_rope_kvcache_cat_mla fuse_act_padding fuse_mla_dual_rms_norm
                fuse_rope_kvcache fuse_qk_norm_rope_kvcache rope_kvcache_fusion_max_token_num
                fi_allreduce_fusion_max_size_mb""",
        },
        "MambaConfig": {
            # Rounding with random bits, as the models' owners choose it.
            Effect.IDENTITY: "enable_stochastic_rounding",
            Effect.NOTHING: "backend stochastic_rounding_philox_rounds ssu_algorithm",
        },
        "OffloadConfig": {Effect.PARTS: "uva prefetch", Effect.NOTHING: "offload_backend"},
        "UVAOffloadConfig": {Effect.NOTHING: "cpu_offload_gb cpu_offload_params"},
        "PrefetchOffloadConfig": {
            Effect.NOTHING: "offload_group_size offload_num_in_group offload_prefetch_step offload_params",
        },
        "EPLBConfig": {
            Effect.NOTHING: """window_size step_interval num_redundant_experts log_balancedness
                log_balancedness_interval use_async policy communicator enable_migration_batching""",
        },
        "HiSparseConfig": {Effect.NOTHING: "device_buffer_size eager_host_mirror"},
        "EngramConfig": {Effect.NOTHING: "cpu_offload embedding_across_dp dp_shared_memory use_thp"},
        # Pooling requests are not stored.
        "PoolerConfig": {
            Effect.NOTHING: """task pooling_type seq_pooling_type tok_pooling_type use_activation
                enable_flash_late_interaction dimensions enable_chunked_processing max_embed_len logit_mean
                logit_sigma step_tag_id returned_token_ids""",
        },
        # The content of external embeddings is unknown here; see the keys.
        "ECTransferConfig": {
            Effect.KEYS: "ec_connector ec_role",
            Effect.NOTHING: """engine_id ec_buffer_device ec_buffer_size ec_ip ec_port ec_connector_extra_config
                ec_connector_module_path mm_encoder_output_widths""",
        },
        "EncoderCacheManagerConfig": {Effect.NOTHING: "encoder_cache_manager_cls manager_config"},
        "DeviceConfig": {Effect.NOTHING: "device device_type"},
        "AuxOutputConfig": {Effect.NOTHING: "enable_return_routed_experts max_bytes"},
        "FaultToleranceConfig": {Effect.NOTHING: "engine_recovery_timeout_sec"},
        "KVEventsConfig": {
            Effect.NOTHING: """enable_kv_cache_events publisher endpoint replay_endpoint buffer_steps hwm
                max_queue_size topic""",
        },
        "LoggingConfig": {
            Effect.NOTHING: "log_level formatter configure_logging pylogging_config_file",
        },
        "ObservabilityConfig": {
            Effect.NOTHING: """show_hidden_metrics_for_version otlp_traces_endpoint collect_detailed_traces
                per_request_spec_decode_metrics kv_cache_metrics kv_cache_metrics_sample custom_histogram_buckets
                cudagraph_metrics enable_layerwise_nvtx_tracing enable_mfu_metrics enable_mm_processor_stats
                enable_logging_iteration_details jit_monitor_mode jit_monitor_verbose""",
        },
        "ProfilerConfig": {
            Effect.NOTHING: """profiler torch_profiler_dir torch_profiler_activities proton_profiler_dir
                proton_context proton_data proton_backend proton_mode proton_hook proton_output_format
                proton_graph_attribution torch_profiler_with_stack torch_profiler_with_flops torch_profiler_use_gzip
                torch_profiler_dump_cuda_time_total torch_profiler_record_shapes torch_profiler_with_memory
                capture_torch_profiler detailed_trace_annotation ignore_frontend delay_iterations max_iterations
                warmup_iterations active_iterations wait_iterations""",
        },
        "ReasoningConfig": {
            Effect.NOTHING: """reasoning_parser reasoning_start_str reasoning_end_str _reasoning_start_token_ids
                _reasoning_end_token_ids _natural_reasoning_end_token_ids _enabled""",
        },
        "StructuredOutputsConfig": {
            Effect.NOTHING: """backend disable_any_whitespace disable_additional_properties reasoning_parser
                reasoning_parser_plugin enable_in_reasoning""",
        },
        "WatermarkConfig": {
            Effect.NOTHING: """key algorithm alpha context_width deduplicate_contexts
                deduplicate_contexts_max_history prf allow_target_only_watermarking""",
        },
    }.items()
}
"""By config class: how the connector treats each field."""

ENVIRONMENT: dict[Effect, str] = {
    # Number formats with fewer bits than the model's, other expert routing, another hub for names.
    Effect.IDENTITY: """VLLM_CPU_INT4_W4A8 VLLM_FLOAT32_MATMUL_PRECISION VLLM_USE_MODELSCOPE
        VLLM_MOE_ROUTING_SIMULATION_STRATEGY VLLM_HUMMING_INPUT_QUANT_CONFIG VLLM_HUMMING_ONLINE_QUANT_CONFIG
        VLLM_HUMMING_USE_F16_ACCUM VLLM_MARLIN_INPUT_DTYPE VLLM_B12X_MOE_FP4_FORCE_A16 VLLM_DEEPEPLL_NVFP4_DISPATCH
        VLLM_FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE VLLM_USE_DEEP_GEMM_E8M0
        VLLM_ROCM_QUICK_REDUCE_CAST_BF16_TO_FP16 VLLM_ROCM_QUICK_REDUCE_QUANTIZATION
        VLLM_ROCM_FP8_MFMA_PAGE_ATTN VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE""",
    Effect.COVERED: "VLLM_KV_CACHE_LAYOUT VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT VLLM_MODEL_REDIRECT_PATH VLLM_MLA_DISABLE",
    Effect.REFUSED: "VLLM_TEST_FORCE_LOAD_FORMAT",
}
"""The same for environment variables. All others select kernels, which round differently, or do not concern the
model."""
