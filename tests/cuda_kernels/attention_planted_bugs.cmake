set(attention KERNEL attention CASE bfloat16)
add_planted_bug(missing_wait ${attention}
  ORIGINAL "    simt::cp_async_wait<0>();  // this tile" PLANTED "    simt::cp_async_wait<1>();  // this tile"
  REPORT "SIMT ERROR: .* is used before an asynchronous copy into it was waited for")
add_planted_bug(missing_barrier_after_wait ${attention}
  ORIGINAL "    __syncthreads();           // and for all" PLANTED "    // and for all"
  REPORT "SIMT ERROR: (race|. is used before|.\\[[0-9]+\\] is used before)")
add_planted_bug(missing_barrier_before_output ${attention}
  ORIGINAL "  __syncthreads();  // q has been read" PLANTED "  // q has been read"
  REPORT "SIMT ERROR: (race|q)")
add_planted_bug(one_stage ${attention}
  ORIGINAL "tile % kStages * kTileWords;\n    load_tile" PLANTED "0;\n    load_tile"
  REPORT "SIMT ERROR: (race|.\\[[0-9]+\\] is used before)")
add_planted_bug(shared_memory_too_small ${attention}
  ORIGINAL "2 * kStages * kKeyTile) * kHeadDim * 2;" PLANTED "2 * kStages * kKeyTile) * kHeadDim;"
  REPORT "SIMT ERROR: a region exceeds")
add_planted_bug(queries_past_the_end ${attention}
  ORIGINAL "load_tile<kQueryTile>(q_tile, q, first_query, 0, params.queries)"
  PLANTED "load_tile<kQueryTile>(q_tile, q, first_query, 0, first_query + kQueryTile)"
  REPORT "SIMT ERROR: memory fault")
add_planted_bug(sees_a_tile_too_much ${attention}
  ORIGINAL "first_key + kKeyTile > first_end" PLANTED "first_key >= first_end"
  REPORT "MISMATCH")
add_planted_bug(ignores_start ${attention}
  ORIGINAL "first_key < visible.start || " PLANTED ""
  REPORT "MISMATCH")
add_planted_bug(reads_keys_nobody_sees ${attention}
  ORIGINAL "v, tile * kKeyTile, visible.start, keys_end)" PLANTED "v, tile * kKeyTile, 0, params.keys)"
  REPORT "MISMATCH")
add_planted_bug(forgets_correction ${attention}
  ORIGINAL "    rescale<kM>(out, correction);\n" PLANTED ""
  REPORT "MISMATCH")
