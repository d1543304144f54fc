set(sparse_linear_int4 KERNEL sparse_linear_int4 CASE bfloat16 HEADER sparse_linear_kernel)
add_planted_bug(units_past_the_end ${sparse_linear_int4}
  ORIGINAL "listed && unit < params.F" PLANTED "listed"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(scale_of_another_group ${sparse_linear_int4}
  ORIGINAL "unit * (vectors / 2) + vector / 2" PLANTED "unit * (vectors / 2)"
  REPORT "MISMATCH")
add_planted_bug(warp_sums_not_there ${sparse_linear_int4}
  ORIGINAL "= sums[i][m];\n    }\n    __syncthreads();\n" PLANTED "= sums[i][m];\n    }\n"
  REPORT "SIMT ERROR: race: (read|write) of warp_sums")
add_planted_bug(ballot_of_some_lanes ${sparse_linear_int4}
  ORIGINAL "masks[round] = __ballot_sync(~0u, listed && unit < params.F);"
  PLANTED "masks[round] = unit < params.F ? __ballot_sync(~0u, listed) : 0;"
  REPORT "SIMT ERROR: (deadlock: the threads diverged|divergent)")
