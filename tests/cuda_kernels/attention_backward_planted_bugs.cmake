set(attention_backward KERNEL attention_backward CASE bfloat16)
add_planted_bug(missing_wait ${attention_backward}
  ORIGINAL "    simt::cp_async_wait<0>();\n" PLANTED "    simt::cp_async_wait<1>();\n"
  REPORT "SIMT ERROR: .* is used before an asynchronous copy into it was waited for")
add_planted_bug(missing_barrier ${attention_backward}
  ORIGINAL "    __syncthreads();  // the tile has landed" PLANTED "    // the tile has landed"
  REPORT "SIMT ERROR: (race|.*is used before)")
add_planted_bug(missing_barrier_before_result ${attention_backward}
  ORIGINAL "  __syncthreads();  // k and v have been read" PLANTED "  // k and v have been read"
  REPORT "SIMT ERROR: race: (asynchronous )?write of (k|v)")
add_planted_bug(statistics_one_row_off ${attention_backward}
  ORIGINAL "tile * kTile + threadIdx.x % kTile;" PLANTED "tile * kTile + threadIdx.x % kTile + 1;"
  REPORT "MISMATCH")
add_planted_bug(statistics_past_the_end ${attention_backward}
  ORIGINAL "const bool valid = row < params.queries;" PLANTED "const bool valid = row <= params.queries;"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(skips_a_tile ${attention_backward}
  ORIGINAL "const int first_tile = first_query / kTile;" PLANTED "const int first_tile = (first_query + kTile - 1) / kTile;"
  REPORT "MISMATCH")
add_planted_bug(deltas_of_half_a_row ${attention_backward}
  ORIGINAL "int offset = kChunks / 2;" PLANTED "int offset = kChunks / 4;"
  REPORT "MISMATCH")
