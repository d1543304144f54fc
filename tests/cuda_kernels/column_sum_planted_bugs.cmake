set(column_sum KERNEL column_sum CASE bfloat16)
add_planted_bug(missing_barrier ${column_sum}
  ORIGINAL "threadIdx.x] = sum;\n  __syncthreads();\n" PLANTED "threadIdx.x] = sum;\n"
  REPORT "SIMT ERROR: race: (read|write) of group_sums")
add_planted_bug(early_return ${column_sum}
  ORIGINAL "  float sum = 0.0f;\n" PLANTED "  float sum = 0.0f;\n  if (column >= stride) return;\n"
  REPORT "SIMT ERROR: divergent barrier")
add_planted_bug(rows_past_the_end ${column_sum}
  ORIGINAL "row < params.rows; row" PLANTED "row <= params.rows; row"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(columns_past_the_end ${column_sum}
  ORIGINAL "if (column < stride)" PLANTED "if (column <= stride)"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(misses_a_group ${column_sum}
  ORIGINAL "group < kRowGroups" PLANTED "group + 1 < kRowGroups"
  REPORT "MISMATCH")
