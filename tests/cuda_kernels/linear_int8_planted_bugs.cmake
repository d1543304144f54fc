set(linear_int8 KERNEL linear_int8 CASE bfloat16)
set(linear_kernel ${linear_int8} HEADER linear_kernel)
set(weight_formats ${linear_int8} HEADER weight_formats THROUGH linear_kernel)
add_planted_bug(weights_past_the_row ${linear_kernel}
  ORIGINAL "row < params.N && vector < vectors;" PLANTED "row < params.N;"
  REPORT "SIMT ERROR: memory fault|MISMATCH")
add_planted_bug(activations_not_there ${linear_kernel}
  ORIGINAL "Tile::kStepColumns);\n      __syncthreads();\n" PLANTED "Tile::kStepColumns);\n"
  REPORT "SIMT ERROR: race: (read|write) of activations")
add_planted_bug(unsigned_codes ${weight_formats}
  ORIGINAL "codes ^ 0x80808080u" PLANTED "codes"
  REPORT "MISMATCH")
add_planted_bug(columns_of_plain_weights ${weight_formats}
  ORIGINAL "return vector * kValues + chunk * kChunk;" PLANTED "return vector * kValues + (1 - chunk) * kChunk;"
  REPORT "MISMATCH")
add_planted_bug(scale_forgotten ${linear_int8} HEADER product_epilogue THROUGH linear_kernel
  ORIGINAL "column_scale == nullptr ? 1.0f : column_scale[n]" PLANTED "1.0f"
  REPORT "MISMATCH")
