set(qk_norm_rope_backward KERNEL qk_norm_rope_backward CASE bfloat16)
add_planted_bug(missing_barrier ${qk_norm_rope_backward}
  ORIGINAL "  __syncthreads();\n" PLANTED ""
  REPORT "SIMT ERROR: race: (read|write) of warp_sums")
add_planted_bug(early_end ${qk_norm_rope_backward}
  ORIGINAL "    const bool inside = head < heads;\n" PLANTED "    const bool inside = head < heads;\n    if (!inside) break;\n"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent)")
add_planted_bug(counts_the_last_head_again ${qk_norm_rope_backward}
  ORIGINAL "const uint4 packed_dq = inside ?" PLANTED "const uint4 packed_dq = true ?"
  REPORT "MISMATCH: sums")
add_planted_bug(heads_past_the_end ${qk_norm_rope_backward}
  ORIGINAL "const int64_t row = inside ? head : heads - 1;" PLANTED "const int64_t row = head;"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(misses_groups_of_the_warp ${qk_norm_rope_backward}
  ORIGINAL "int offset = Row::kLanes; offset" PLANTED "int offset = 2 * Row::kLanes; offset"
  REPORT "MISMATCH: sums")
add_planted_bug(every_group_writes ${qk_norm_rope_backward}
  ORIGINAL "if (threadIdx.x % simt::kWarpSize < Row::kLanes) warp_sums" PLANTED "warp_sums"
  REPORT "SIMT ERROR: race: write of warp_sums")
