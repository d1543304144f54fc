set(sparse_linear_int8 KERNEL sparse_linear_int8 CASE bfloat16 HEADER sparse_linear_kernel)
add_planted_bug(counts_not_there ${sparse_linear_int8}
  ORIGINAL "warp_counts[warp] = count;\n  __syncthreads();\n" PLANTED "warp_counts[warp] = count;\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_counts")
add_planted_bug(weights_past_the_row ${sparse_linear_int8}
  ORIGINAL "entry >= listed || vector >= vectors" PLANTED "entry >= listed"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(rows_past_the_last ${sparse_linear_int8}
  ORIGINAL "first_m + m < params.M) params.partials" PLANTED "true) params.partials"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(arrivals_of_another_pass ${sparse_linear_int8}
  ORIGINAL "nonzeros.arrivals + blockIdx.x" PLANTED "nonzeros.arrivals + tile"
  REPORT "MISMATCH")
add_planted_bug(scale_forgotten KERNEL sparse_linear_int8 CASE bfloat16 HEADER product_epilogue THROUGH sparse_linear_kernel
  ORIGINAL "column_scale == nullptr ? 1.0f : column_scale[n]" PLANTED "1.0f"
  REPORT "MISMATCH")
