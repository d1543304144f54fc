set(qk_norm_rope KERNEL qk_norm_rope CASE bfloat16)
add_planted_bug(early_return ${qk_norm_rope}
  ORIGINAL "  float x[Row::kWidth];\n" PLANTED "  if (row >= rows) return;\n  float x[Row::kWidth];\n"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent)")
add_planted_bug(loads_past_the_end ${qk_norm_rope}
  ORIGINAL "row < rows ? row : rows - 1" PLANTED "row"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(normalises_values ${qk_norm_rope}
  ORIGINAL "part == 2 ? loaded" PLANTED "part == 3 ? loaded"
  REPORT "MISMATCH: v")
add_planted_bug(slot_past_the_cache ${qk_norm_rope}
  ORIGINAL "slot < 0 || slot >= params.cache_rows" PLANTED "slot < 0"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(slot_in_front_of_the_cache ${qk_norm_rope}
  ORIGINAL "slot < 0 || slot >= params.cache_rows" PLANTED "slot >= params.cache_rows"
  REPORT "SIMT ERROR: (memory fault|something wrote in front)|MISMATCH")
add_planted_bug(slot_of_another_sequence ${qk_norm_rope}
  ORIGINAL "params.slots[token]" PLANTED "params.slots[t]"
  REPORT "MISMATCH")

set(head_rows ${qk_norm_rope} HEADER head_rows)
add_planted_bug(shuffle_of_rotated_lanes ${head_rows}
  ORIGINAL "      const float other = __shfl_xor_sync" 
  PLANTED "      if (lane >= Row::kRotaryLanes) continue;\n      const float other = __shfl_xor_sync"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent)")
add_planted_bug(sum_of_half_a_row ${head_rows}
  ORIGINAL "int offset = HeadRow<T>::kLanes / 2;" PLANTED "int offset = HeadRow<T>::kLanes / 4;"
  REPORT "MISMATCH: q")
