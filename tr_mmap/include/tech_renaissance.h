// The original framework's name for it all: #include "tech_renaissance.h".
#pragma once

#include <iostream>

#include "tr_mmap/tr_mmap.hpp"
