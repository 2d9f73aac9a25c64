// The original framework's name for it all: #include "tech_renaissance.h".
#ifndef TECH_RENAISSANCE_H
#define TECH_RENAISSANCE_H

#include <iostream>

#include "tr_mmap/tr_mmap.hpp"

#endif  // TECH_RENAISSANCE_H
