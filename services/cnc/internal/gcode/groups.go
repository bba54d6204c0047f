package gcode

// Group is a modal group: at most one of its codes may stand in a block.
type Group uint8

// Groups of RS-274/NGC, G codes first.
const (
	GroupNone     Group = iota
	GroupNonModal       // G4 G28 G53 G92: act in their block only
	GroupMotion
	GroupPlane
	GroupDistance
	GroupArcMode
	GroupFeedMode
	GroupUnits
	GroupCutterComp
	GroupToolLength
	GroupOffset
	groupStop
	groupToolChange
	groupSpindle
	groupMist
	groupFlood
)

// gGroup returns the group of a G code in tenths, GroupNone when it is unknown.
func gGroup(g int) Group {
	switch g {
	case 40, 280, 530, 920:
		return GroupNonModal
	case 0, 10, 20, 30, 800, 810, 820, 830:
		return GroupMotion
	case 170, 180, 190:
		return GroupPlane
	case 900, 910:
		return GroupDistance
	case 901, 911:
		return GroupArcMode
	case 930, 940:
		return GroupFeedMode
	case 200, 210:
		return GroupUnits
	case 400, 410, 420:
		return GroupCutterComp
	case 430, 440, 450, 460, 470, 480, 490:
		return GroupToolLength
	case 540, 550, 560, 570, 580, 590:
		return GroupOffset
	}
	return GroupNone
}

func mGroup(m int) Group {
	switch m {
	case 0, 1, 2, 30:
		return groupStop
	case 6:
		return groupToolChange
	case 3, 4, 5:
		return groupSpindle
	case 7:
		return groupMist // M7 and M8 may stand in one block
	case 8, 9:
		return groupFlood
	}
	return GroupNone
}

// check looks at what only the whole block can tell.
func (b *Block) check() error {
	const axes = "XYZ"
	motion, moves := b.InGroup(GroupMotion)
	nonModal, special := b.InGroup(GroupNonModal)
	switch {
	case special && nonModal == 530:
		if moves && motion > 10 {
			return Errorf(b.Line, "G53 needs G0 or G1, not %s", GName(motion))
		}
	case special && moves && nonModal != 40 && motion != 800:
		return Errorf(b.Line, "%s and %s both use the axis words", GName(nonModal), GName(motion))
	}
	if moves && motion == 800 && b.Has(axes) && !special {
		return Errorf(b.Line, "axis words with G80 and no motion")
	}
	if special && nonModal == 40 && !b.Has("P") {
		return Errorf(b.Line, "G4 needs a P word")
	}
	if special && nonModal == 920 && !b.Has(axes) {
		return Errorf(b.Line, "G92 needs an axis word")
	}
	if moves && (motion == 20 || motion == 30) && b.Has("R") && b.Has("IJK") {
		return Errorf(b.Line, "arc with both a radius and a centre")
	}
	return nil
}
