set(layer_norm KERNEL layer_norm CASE bfloat16)
set(row_sum ${layer_norm} HEADER row_sum)
add_planted_bug(missing_barrier ${row_sum}
  ORIGINAL "  __syncthreads();\n" PLANTED ""
  REPORT "SIMT ERROR: race: (read|write) of partial_")
add_planted_bug(barrier_for_readers_only ${row_sum}
  ORIGINAL "  __syncthreads();\n" PLANTED "  if (lane < warps_per_row) __syncthreads();\n"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent)")
add_planted_bug(early_return ${layer_norm}
  ORIGINAL "    const int row_vectors = row < params.rows ? vectors : 0;\n"
  PLANTED "    if (row >= params.rows) return;\n    const int row_vectors = vectors;\n"
  REPORT "SIMT ERROR: divergent barrier")
add_planted_bug(store_past_row ${layer_norm}
  ORIGINAL "      if (vector >= row_vectors) continue;\n" PLANTED "      if (vector > row_vectors) continue;\n"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(missing_tail_mask ${layer_norm}
  ORIGINAL "vector < row_vectors ? simt::load16(x + vector * kWidth) : make_uint4(0, 0, 0, 0)"
  PLANTED "simt::load16(x + vector * kWidth)"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(shared_index ${row_sum}
  ORIGINAL "partial[first_warp + lane]" PLANTED "partial[first_warp + lane + 1]"
  REPORT "SIMT ERROR: (race|index)|MISMATCH")
add_planted_bug(one_array_for_both_sums ${layer_norm}
  ORIGINAL "row_sum(squares, partial_squares)" PLANTED "row_sum(squares, partial_sums)"
  REPORT "SIMT ERROR: race: (read|write) of partial_sums")
