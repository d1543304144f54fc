set(decode_attention KERNEL decode_attention HEADER decode_attention_kernel CASE bfloat16)
add_planted_bug(caches_not_waited_for ${decode_attention}
  ORIGINAL "  simt::wait_for_predecessors();\n" PLANTED ""
  REPORT "SIMT ERROR: a thread of a dependent launch exits without having waited")
add_planted_bug(queries_not_there ${decode_attention}
  ORIGINAL "  __syncthreads();\n  uint4 queries[kTokens];\n" PLANTED "  uint4 queries[kTokens];\n"
  REPORT "SIMT ERROR: race: read of shared_queries")
add_planted_bug(token_misses_itself ${decode_attention}
  ORIGINAL "exists && t >= group" PLANTED "exists && t > group"
  REPORT "MISMATCH: out")
add_planted_bug(keys_past_the_split ${decode_attention}
  ORIGINAL "      const bool inside = key < end;\n" PLANTED "      const bool inside = key < params.S;\n"
  REPORT "MISMATCH: out")
add_planted_bug(splits_not_waited_for KERNEL decode_attention CASE bfloat16
  ORIGINAL "  simt::wait_for_predecessors();\n" PLANTED ""
  REPORT "SIMT ERROR: a thread of a dependent launch exits without having waited")
add_planted_bug(first_split_counts_twice KERNEL decode_attention CASE bfloat16
  ORIGINAL "partials + s * stride;" PLANTED "partials + (s == 1 ? 0 : s) * stride;"
  REPORT "MISMATCH: out")

set(decode_attention_int8 KERNEL decode_attention_int8 HEADER decode_attention_kernel CASE bfloat16)
add_planted_bug(scale_of_values_forgotten ${decode_attention_int8}
  ORIGINAL "v_scales[i] = values[i].scale()" PLANTED "v_scales[i] = 1.0f"
  REPORT "MISMATCH: out")
add_planted_bug(value_of_another_token ${decode_attention_int8}
  ORIGINAL "new_value = Row::of(value)" PLANTED "new_value = new_key"
  REPORT "MISMATCH: v")
add_planted_bug(scale_of_another_lane KERNEL decode_attention_int8 CASE bfloat16 HEADER cache_formats THROUGH decode_attention_kernel
  ORIGINAL "int offset = kCacheLanes / 2;" PLANTED "int offset = kCacheLanes / 4;"
  REPORT "MISMATCH: (out|k|v)")
