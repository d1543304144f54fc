# add_planted_bug(NAME ORIGINAL text PLANTED text REPORT regex): builds layer_norm_test from a copy of the kernel with every
# ORIGINAL replaced, and adds a test that passes when the program's output matches REPORT.
if(POLICY CMP0174)
  cmake_policy(SET CMP0174 NEW)  # an empty PLANTED is an empty string: a bug may be a deletion
endif()

function(add_planted_bug name)
  cmake_parse_arguments(PARSE_ARGV 1 BUG "" "ORIGINAL;PLANTED;REPORT" "")  # keeps the semicolons of the texts
  set(kernel "${csrc}/cuda/layer_norm.cu")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${kernel}")
  file(READ "${kernel}" text)
  string(FIND "${text}" "${BUG_ORIGINAL}" position)
  if(position EQUAL -1)
    message(FATAL_ERROR "planted bug ${name}: the kernel no longer contains: ${BUG_ORIGINAL}")
  endif()
  string(REPLACE "${BUG_ORIGINAL}" "${BUG_PLANTED}" text "${text}")
  string(REPLACE "#include \"layer_norm.cuh\"" "#include \"cuda/layer_norm.cuh\"" text "${text}")
  set(planted "${CMAKE_CURRENT_BINARY_DIR}/planted/${name}.cpp")
  file(WRITE "${planted}.new" "${text}")
  configure_file("${planted}.new" "${planted}" COPYONLY)  # keeps the time of an unchanged file
  add_executable(planted_${name} $<TARGET_OBJECTS:layer_norm_driver> "${planted}")
  target_link_libraries(planted_${name} PRIVATE simt)
  target_compile_options(planted_${name} PRIVATE -Wno-unused-variable -Wno-unused-but-set-variable)
  add_test(NAME planted_${name} COMMAND planted_${name} bfloat16 1)
  set_tests_properties(planted_${name} PROPERTIES PASS_REGULAR_EXPRESSION "${BUG_REPORT}")
endfunction()
