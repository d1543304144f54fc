set(layer_norm_backward KERNEL layer_norm_backward CASE bfloat16)
add_planted_bug(missing_barrier ${layer_norm_backward} HEADER row_sum
  ORIGINAL "  __syncthreads();\n" PLANTED ""
  REPORT "SIMT ERROR: race: (read|write) of partial_")
add_planted_bug(early_end ${layer_norm_backward}
  ORIGINAL "    const int row_vectors = row < params.rows ? vectors : 0;\n"
  PLANTED "    if (row >= params.rows) break;\n    const int row_vectors = vectors;\n"
  REPORT "SIMT ERROR: divergent barrier")
add_planted_bug(loads_past_the_row ${layer_norm_backward}
  ORIGINAL "const bool inside = vector < row_vectors;" PLANTED "const bool inside = vector <= row_vectors;"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(stores_past_the_row ${layer_norm_backward}
  ORIGINAL "if (vector >= row_vectors) continue;" PLANTED "if (vector > row_vectors) continue;"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(one_place_for_all_teams ${layer_norm_backward}
  ORIGINAL "(int64_t{blockIdx.x} * blockDim.y + threadIdx.y)" PLANTED "(int64_t{blockIdx.x} * blockDim.y)"
  REPORT "MISMATCH: dweight")
add_planted_bug(sums_not_cleared ${layer_norm_backward}
  ORIGINAL "dweight[c] = dbias[c] = 0.0f;" PLANTED "{}"
  REPORT "MISMATCH: dweight")
